"""How lost attempts are found, on SQLite and on PostgreSQL."""

from contextlib import nullcontext

import pytest

from sae_service.errors import LeaseLost, ServiceUnavailable
from sae_service.jobs import queue
from sae_service.jobs.attempts import Attempt
from sae_service.jobs.database import Database
from sae_service.jobs.lost_attempts import LostAttempts
from sae_service.jobs.store import JobStore
from tests.attempts import checkpoint, claimed, submitted


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def swept(database: Database) -> tuple[LostAttempts, Clock]:
    clock = Clock()
    return LostAttempts(database, lease_s=60, clock=clock), clock


def statuses(swept: tuple[LostAttempts, Clock], store: JobStore, job_id: str, *times: float) -> list[str]:
    """A job's status after looks at these times."""
    lost_attempts, clock = swept
    found: list[str] = []
    for clock.now in times:
        lost_attempts.look()
        found.append(store.get(job_id).status)
    return found


def test_an_attempt_without_a_sign_of_life_is_lost_and_can_no_longer_write(
    database: Database, store: JobStore, swept: tuple[LostAttempts, Clock]
) -> None:
    attempt = claimed(database, store)
    lost_attempts, clock = swept
    for clock.now in (0, 20, 40, 59):
        lost_attempts.look()
    assert store.get(attempt.job_id).status == "running"
    clock.now = 60
    lost_attempts.look()
    assert (store.get(attempt.job_id).status, store.get(attempt.job_id).attempt) == ("queued", 2)
    for write in (attempt.renew, attempt.release, attempt.cancel, lambda: attempt.event("info", "I live")):
        with pytest.raises(LeaseLost):
            write()
    with pytest.raises(LeaseLost):
        attempt.commit(checkpoint(5) | {"key": "k/zombie"}, keep=1)


def test_a_worker_that_is_ended_before_it_has_saved_its_job_is_no_crash(
    database: Database, store: JobStore, swept: tuple[LostAttempts, Clock]
) -> None:
    attempt = claimed(database, store)
    attempt.renew(is_stopping=True)
    assert store.get(attempt.job_id).status_reason == "worker_stopping"
    assert statuses(swept, store, attempt.job_id, 0, 20, 40, 60)[-1] == "queued"
    assert store.get(attempt.job_id).status_reason == "preempted"
    again = Attempt(database, attempt.job_id, 2)
    assert again.claim("worker-1") is not None
    assert store.get(attempt.job_id).status_reason is None


def test_a_cancel_outlives_a_worker_that_is_told_to_stop_and_ended(
    database: Database, store: JobStore, swept: tuple[LostAttempts, Clock]
) -> None:
    attempt = claimed(database, store)
    attempt.renew(is_stopping=True)
    store.cancel(attempt.job_id)
    assert statuses(swept, store, attempt.job_id, 0, 20, 40, 60)[-1] == "cancelled"


def test_an_attempt_that_renews_is_never_lost(database: Database, store: JobStore, swept: tuple[LostAttempts, Clock]) -> None:
    attempt = claimed(database, store)
    lost_attempts, clock = swept
    for clock.now in range(0, 600, 25):
        attempt.renew()
        lost_attempts.look()
    assert store.get(attempt.job_id).status == "running"


def test_an_outage_in_the_middle_of_a_look_is_no_workers_fault(
    database: Database, store: JobStore, swept: tuple[LostAttempts, Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = claimed(database, store)
    lost_attempts, clock = swept
    lost_attempts.look()
    taken = lost_attempts._queue.taken

    def waits_for_the_database(attempts: list[tuple[str, int]]) -> set[tuple[str, int]]:
        clock.now += 100
        return taken(attempts)

    monkeypatch.setattr(lost_attempts._queue, "taken", waits_for_the_database)
    lost_attempts.look()
    assert store.get(attempt.job_id).status == "running"


@pytest.mark.parametrize("answers", [True, False])
def test_an_outage_before_a_look_is_no_workers_fault(
    database: Database, store: JobStore, swept: tuple[LostAttempts, Clock], answers: bool
) -> None:
    attempt = claimed(database, store)
    lost_attempts, clock = swept
    lost_attempts.look()

    def after_a_while() -> bool:
        clock.now += 59
        if not answers:
            raise ServiceUnavailable("the database is away")
        return True

    with nullcontext() if answers else pytest.raises(ServiceUnavailable):
        lost_attempts.look(after_a_while)
    for clock.now in (60, 80, 100, 118):
        lost_attempts.look()
        assert store.get(attempt.job_id).status == "running"
    clock.now = 120
    lost_attempts.look()
    assert store.get(attempt.job_id).status == "queued"


def test_a_database_that_answers_but_takes_nothing_is_no_workers_fault(
    database: Database, store: JobStore, swept: tuple[LostAttempts, Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = claimed(database, store)
    lost_attempts, clock = swept
    for clock.now in (0, 20, 40):
        lost_attempts.look()

    def disk_full(job_id: str, sign: tuple[int, int]) -> None:
        raise ServiceUnavailable("the disk is full")

    clock.now = 60
    with monkeypatch.context() as full:
        full.setattr(lost_attempts, "_declare_lost", disk_full)
        with pytest.raises(ServiceUnavailable):
            lost_attempts.look()
    assert statuses(swept, store, attempt.job_id, 61, 80, 100, 120, 121) == ["running"] * 4 + ["queued"]


def test_a_look_that_fails_for_whatever_reason_makes_nobody_look_older(
    database: Database, store: JobStore, swept: tuple[LostAttempts, Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = claimed(database, store)
    lost_attempts, clock = swept
    for clock.now in (0, 20):
        lost_attempts.look()
    clock.now = 40
    with monkeypatch.context() as broken:
        broken.setattr(lost_attempts, "_taken", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            lost_attempts.look()
    assert statuses(swept, store, attempt.job_id, 60, 80, 100, 119, 120) == ["running"] * 4 + ["queued"]


def test_a_service_that_was_frozen_as_a_whole_loses_no_job(
    database: Database, store: JobStore, swept: tuple[LostAttempts, Clock]
) -> None:
    attempt = claimed(database, store)
    lost_attempts, clock = swept
    for clock.now in (0, 20, 1000, 1020, 1040):
        lost_attempts.look()
    attempt.renew()
    for clock.now in (1060, 1080, 1100, 1119):
        lost_attempts.look()
    assert store.get(attempt.job_id).status == "running"


def test_a_freeze_in_the_middle_of_a_look_loses_no_job(
    database: Database, store: JobStore, swept: tuple[LostAttempts, Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = claimed(database, store)
    lost_attempts, clock = swept
    for clock.now in (0, 20):
        lost_attempts.look()
    before = iter([40.0, 40.0])
    monkeypatch.setattr(lost_attempts, "_clock", lambda: next(before, 1000.0))
    lost_attempts.look()
    assert store.get(attempt.job_id).status == "running"


def test_a_job_that_was_being_cancelled_when_its_worker_died_is_cancelled(
    database: Database, store: JobStore, swept: tuple[LostAttempts, Clock]
) -> None:
    attempt = claimed(database, store)
    store.cancel(attempt.job_id)
    lost_attempts, clock = swept
    for clock.now in (0, 20, 40, 60):
        lost_attempts.look()
    assert store.get(attempt.job_id).status == "cancelled"


def test_an_attempt_that_was_taken_but_never_claimed_is_queued_again(
    database: Database, store: JobStore, swept: tuple[LostAttempts, Clock]
) -> None:
    job, waiting = submitted(store), submitted(store)
    queue.Queue(database).drop(job.id, 1)
    lost_attempts, clock = swept
    for clock.now in (0, 20, 40, 60):
        lost_attempts.look()
    assert (store.get(job.id).status, store.get(job.id).attempt) == ("queued", 2)
    assert store.get(waiting.id).attempt == 1
