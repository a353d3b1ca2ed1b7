"""What a worker's log says of the end of an attempt."""

import logging
from collections.abc import Callable

import pytest

from sae_service.jobs.attempts import Attempt
from sae_service.jobs.database import Database
from sae_service.jobs.lost_attempts import LostAttempts
from sae_service.jobs.store import JobStore
from tests.attempts import CRASH, checkpoint, claimed

NO_NUMBER = {"code": "nan_loss", "message": "The loss of a is NaN at step 3.\nMore of it.", "param": None}


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (lambda attempt: attempt.commit(checkpoint(9, is_final=True) | {"key": "k"}, keep=1), "succeeded"),
        (lambda attempt: attempt.fail(NO_NUMBER), "failed (nan_loss): The loss of a is NaN at step 3."),
        (lambda attempt: attempt.release(), "preempted"),
        (
            lambda attempt: attempt.record_crash(CRASH),
            "crashed (worker_crashed): It fell over. The job is queued again (crash 1 of 3).",
        ),
    ],
    ids=["succeeded", "failed", "preempted", "crashed"],
)
def test_one_line_says_how_an_attempt_has_ended_and_why(
    database: Database, store: JobStore, caplog: pytest.LogCaptureFixture, end: Callable[[Attempt], None], said: str
) -> None:
    caplog.set_level(logging.INFO, "attempts")
    attempt = claimed(database, store)
    end(attempt)
    (line,) = [record for record in caplog.records if record.name == "attempts"]
    assert line.getMessage() == f"the attempt has ended: {said}"
    assert vars(line)["about"] == {"job": attempt.job_id, "attempt": 1}


@pytest.mark.parametrize(("ask", "said"), [("cancel", "cancelled"), ("pause", "paused")])
def test_what_its_user_has_asked_for_is_how_it_has_ended(
    database: Database, store: JobStore, caplog: pytest.LogCaptureFixture, ask: str, said: str
) -> None:
    caplog.set_level(logging.INFO, "attempts")
    attempt = claimed(database, store)
    getattr(store, ask)(attempt.job_id)
    attempt.record_crash(CRASH)
    assert caplog.messages[-1] == f"the attempt has ended: {said}"


def test_who_finds_an_attempt_lost_says_so(database: Database, store: JobStore, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "attempts")
    attempt, now = claimed(database, store), [0.0]
    lost_attempts = LostAttempts(database, 60, clock=lambda: now[0])
    for now[0] in (0, 20, 40, 60):
        lost_attempts.look()
    (line,) = [record for record in caplog.records if vars(record).get("about", {}).get("job") == attempt.job_id]
    expected = "crashed (worker_crashed): Worker worker-1 has shown no sign of life. The job is queued again (crash 1 of 3)."
    assert line.getMessage() == f"the attempt has ended: {expected}"
