"""Attempts that were taken out of the queue: found if they were never begun, forgotten once they are over."""

from typing import Any

import pytest
import sqlalchemy as sa

from sae_service.jobs import queue
from sae_service.jobs.database import Database
from sae_service.jobs.presence import Presence
from sae_service.jobs.store import JobStore
from tests.attempts import claimed, submitted
from tests.looks import Looks


@pytest.fixture
def looks(database: Database) -> Looks:
    return Looks(database)


def test_an_attempt_that_was_taken_but_never_claimed_is_queued_again(
    database: Database, store: JobStore, looks: Looks
) -> None:
    job, waiting = submitted(store), submitted(store)
    queue.Queue(database).drop(job.id, 1)
    looks.at(0, 20, 40, 60)
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
    database: Database, store: JobStore, looks: Looks
) -> None:
    in_hand(database, submitted(store).id, "gone")
    claimed(database, store)
    reads: list[list[tuple[str, int]]] = []
    asked: list[tuple[str, Any]] = []
    for waiting in (1, 100):
        for _ in range(waiting):
            submitted(store)
        read: list[tuple[str, int]] = []

        def count(_: object, cursor: Any, statement: str, values: Any, *__: object, into: list[tuple[str, int]] = read) -> None:
            into.append((statement, cursor.rowcount))
            asked.append((statement, values))

        looks.look()
        sa.event.listen(database.engine, "after_cursor_execute", count)
        looks.look()
        sa.event.remove(database.engine, "after_cursor_execute", count)
        reads.append(read)
    assert reads[0] == reads[1]
    if database.is_sqlite:
        with database.engine.connect() as connection:
            explain = [(f"EXPLAIN QUERY PLAN {statement}", values) for statement, values in asked if statement.startswith("SELECT")]
            plans = [connection.exec_driver_sql(*statement).all() for statement in explain]
        # By created_at it would go through all attempts that wait.
        assert not [plan for plan in plans if "SCAN jobs" in str(plan) or "created_at" in str(plan)]


def test_a_job_that_was_taken_by_a_worker_that_died_before_it_began_is_queued_again(
    database: Database, store: JobStore, looks: Looks
) -> None:
    job = submitted(store)
    in_hand(database, job.id, "gone")
    assert looks.statuses(store, job.id, 0, 20, 40, 60)[-1] == "queued"
    assert store.get(job.id).attempt == 2
    assert job.id in known(database)
    looks.look()
    assert job.id not in known(database), "the attempt of a dead worker is forgotten"


def test_an_attempt_that_has_ended_is_forgotten_once_its_worker_is_done_with_it(
    database: Database, store: JobStore, looks: Looks
) -> None:
    waited, worked = submitted(store), claimed(database, store)
    in_hand(database, worked.job_id, "worker-1:busy")
    worked.fail({"code": "internal", "message": "It fell over.", "param": None})
    store.cancel(waited.id)
    present = Presence(database, "worker-1:busy", "default", 1, lease_s=60)
    present.renew()
    looks.look()
    assert (waited.id in known(database), worked.job_id in known(database)) == (False, True)
    present.leave()
    looks.look()
    assert worked.job_id not in known(database)


def test_a_deleted_job_leaves_nothing_in_the_queue(database: Database, store: JobStore) -> None:
    job = store.cancel(submitted(store).id)
    assert job.id in known(database)
    store.delete(job.id, lambda: None)
    assert job.id not in known(database)
