"""How attempts end: counted, and said in the log of the process that has ended them, one line for each."""

import logging
from typing import Any

from sae_service.counters import ATTEMPTS

log = logging.getLogger("attempts")


def attempt_ended(
    job_id: str, number: int, status: str, how: str, error: dict[str, Any] | None = None, became: str = ""
) -> None:
    """Notes the end of an attempt.

    Args:
        status: the job's before; what its user had asked for by then is how it ended.
        how: succeeded, failed, crashed or preempted, if it was left to itself.
        error: why, as it is stored with the job. Only its first line is said: of a crash the rest is the end of a log.
        became: what the job did next, as a sentence.
    """
    end = {"cancelling": "cancelled", "pausing": "paused"}.get(status, how)
    ATTEMPTS.labels(end).inc()
    why = ""
    if error is not None and end == how:
        first, *_ = error["message"].split("\n")
        why = f" ({error['code']}): {first}"
    said = f"the attempt has ended: {end}{why} {became}".rstrip()
    log.info("%s", said, extra={"about": {"job": job_id, "attempt": number}})
