"""How lost attempts are found, on SQLite and on PostgreSQL."""

from contextlib import nullcontext
from typing import Any

import pytest
import sqlalchemy as sa

from sae_service.errors import LeaseLost, ServiceUnavailable
from sae_service.jobs import queue
from sae_service.jobs.attempts import Attempt
from sae_service.jobs.database import Database
from sae_service.jobs.lost_attempts import LostAttempts
from sae_service.jobs.presence import Presence
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
    begun = lost_attempts._queue.begun

    def waits_for_the_database() -> list[queue.Begun]:
        clock.now += 100
        return begun()

    monkeypatch.setattr(lost_attempts._queue, "begun", waits_for_the_database)
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


def in_hand(database: Database, job_id: str, worker: str) -> None:
    """Stands for a worker that has taken a job's first attempt out of the queue."""
    system = queue.Queue(database)._client._sys_db
    table = system.tables.workflow_status
    taken = sa.update(table).where(table.c.workflow_uuid == f"{job_id}.1").values(status="PENDING", executor_id=worker)
    with system.engine.begin() as connection:
        assert connection.execute(taken).rowcount == 1


def known(database: Database) -> set[str]:
    return {one.job_id for one in queue.Queue(database).begun()}


def test_a_look_reads_what_is_taken_and_nothing_of_what_waits(
    database: Database, store: JobStore, swept: tuple[LostAttempts, Clock]
) -> None:
    in_hand(database, submitted(store).id, "gone")
    claimed(database, store)
    looks: list[list[tuple[str, int]]] = []
    asked: list[tuple[str, Any]] = []
    for waiting in (1, 100):
        for _ in range(waiting):
            submitted(store)
        read: list[tuple[str, int]] = []

        def count(_: object, cursor: Any, statement: str, values: Any, *__: object, into: list[tuple[str, int]] = read) -> None:
            into.append((statement, cursor.rowcount))
            asked.append((statement, values))

        swept[0].look()
        sa.event.listen(database.engine, "after_cursor_execute", count)
        swept[0].look()
        sa.event.remove(database.engine, "after_cursor_execute", count)
        looks.append(read)
    assert looks[0] == looks[1]
    if database.is_sqlite:
        with database.engine.connect() as connection:
            plans = [connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).all() for statement, values in asked]
        # By created_at it would go through all attempts that wait.
        assert not [plan for plan in plans if "SCAN jobs" in str(plan) or "created_at" in str(plan)]


def test_a_job_that_was_taken_by_a_worker_that_died_before_it_began_is_queued_again(
    database: Database, store: JobStore, swept: tuple[LostAttempts, Clock]
) -> None:
    job = submitted(store)
    in_hand(database, job.id, "gone")
    assert statuses(swept, store, job.id, 0, 20, 40, 60)[-1] == "queued"
    assert store.get(job.id).attempt == 2
    assert job.id in known(database)
    swept[0].look()
    assert job.id not in known(database), "the attempt of a dead worker is forgotten"


def test_an_attempt_that_has_ended_is_forgotten_once_its_worker_is_done_with_it(
    database: Database, store: JobStore, swept: tuple[LostAttempts, Clock]
) -> None:
    waited, worked = submitted(store), claimed(database, store)
    in_hand(database, worked.job_id, "worker-1:busy")
    worked.fail({"code": "internal", "message": "It fell over.", "param": None})
    store.cancel(waited.id)
    present = Presence(database, "worker-1:busy", "default", 1, lease_s=60)
    present.renew()
    swept[0].look()
    assert (waited.id in known(database), worked.job_id in known(database)) == (False, True)
    present.leave()
    swept[0].look()
    assert worked.job_id not in known(database)


def test_a_deleted_job_leaves_nothing_in_the_queue(database: Database, store: JobStore) -> None:
    job = store.cancel(submitted(store).id)
    assert job.id in known(database)
    store.delete(job.id, lambda: None)
    assert job.id not in known(database)


def test_a_worker_that_is_gone_is_found_by_looks_that_all_take_long(
    database: Database, store: JobStore, swept: tuple[LostAttempts, Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = claimed(database, store)
    lost_attempts, clock = swept
    begun = lost_attempts._queue.begun

    def slow() -> list[queue.Begun]:
        clock.now += 40
        return begun()

    monkeypatch.setattr(lost_attempts._queue, "begun", slow)
    found: list[str] = []
    for _ in range(8):
        lost_attempts.look()
        found.append(store.get(attempt.job_id).status)
        clock.now += 10
    # The time between the looks counts: seven times ten seconds.
    assert found == ["running"] * 6 + ["queued"] * 2
