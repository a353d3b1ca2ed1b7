"""A log as it grows, out of one look at its end after the other."""

import time
from collections.abc import Callable, Iterator

from sae_service.errors import NotFound
from sae_service.jobs.records import Job

LIKE = 500
"""So many characters of a log are at no second place in it."""


def follow(
    job: Callable[[], Job], log: Callable[[int | None], tuple[int, str]], attempt: int | None, lines: int | None, pause_s: float
) -> Iterator[str]:
    """What there is, then what is added, until the job has ended or is paused.

    Args:
        job: the job as it is now.
        log: the end of an attempt's log, or of the last one that has any, and the attempt's number. Raises NotFound.
        attempt: whose log; None for one attempt after another.
        lines: begin with only the last so many.

    Raises:
        NotFound: there is no such job, or it has ended without a log.
    """
    number, before, is_over = attempt, "", False
    while not is_over:
        # Before the look at the log: that of a job which has ended is complete.
        now = job()
        is_over = now.is_terminal or now.status == "paused" or (attempt is not None and now.attempt > attempt)
        try:
            newest, end = log(attempt)
        except NotFound:
            if is_over and not before and now.status != "paused":
                raise
        else:
            # Several attempts may have ended since the last look.
            for passed in range(newest if number is None else number, newest):
                yield added(before, _text(log, passed))
                before = ""
            part = added(before, end)
            yield part if lines is None else "".join(part.splitlines(keepends=True)[-lines:])
            number, before, lines = newest, end, None
        if not is_over:
            time.sleep(pause_s)


def _text(log: Callable[[int | None], tuple[int, str]], attempt: int) -> str:
    """The log of an attempt that has ended; one that did not begin has none."""
    try:
        return log(attempt)[1]
    except NotFound:
        return ""


def added(before: str, now: str) -> str:
    """What the end of a growing text has more than an earlier one; all of it if they have nothing in common."""
    if now.startswith(before):
        return now[len(before) :]
    start = before.find(now[:LIKE])
    known = before[start:] if start >= 0 else ""
    return now[len(known) :] if now.startswith(known) else now
