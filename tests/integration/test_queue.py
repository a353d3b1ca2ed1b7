"""The queue while jobs are taken out of it, with DBOS in a process of its own, on SQLite and on PostgreSQL."""

import subprocess
import sys

import pytest
import sqlalchemy as sa

from sae_service.jobs.database import Database
from sae_service.jobs.queue import Begun, Queue
from sae_service.jobs.store import JobStore
from tests.attempts import submitted

WORKER = """
import sys
import threading
from sae_service.jobs import queue
from sae_service.jobs.attempts import Attempt
from sae_service.jobs.database import Database
from sae_service.jobs.store import JobStore

url, change, lane = sys.argv[1:]
database, taken = Database(url), threading.Event()
store, before = JobStore(database), []

def work(job_id, attempt):
    if before:
        taken.set()
        return
    before.append(job_id)
    getattr(store, change)(job_id)
    assert Attempt(database, job_id, attempt).claim("worker") is None
    store.submit(store.get(job_id).spec)

queue.take_from(database, lane, 1, "worker", work)
assert taken.wait(60), "the next job was not taken"
queue.stop_taking(wait_s=5)
"""


@pytest.mark.parametrize("change", ["cancel", "pause"])
def test_a_job_that_is_changed_as_a_worker_takes_it_is_no_error_and_the_next_one_is_taken(
    store: JobStore, database: Database, change: str
) -> None:
    lane = f"meets-{change}"
    submitted(store, queue=lane)
    ran = subprocess.run([sys.executable, "-c", WORKER, database.url, change, lane], capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_what_is_taken_out_of_the_queue_has_ended_and_leaves_nothing_of_itself_once_it_is_forgotten(
    store: JobStore, database: Database
) -> None:
    job, queue = submitted(store), Queue(database)
    schema = "" if database.is_sqlite else "dbos."

    def rows() -> list[int]:
        count = f"SELECT count(*) FROM {schema}{{}} WHERE workflow_uuid = '{job.id}.1'"
        with database.engine.connect() as connection:
            return [connection.execute(sa.text(count.format(name))).scalar_one() for name in ("workflow_status", "workflow_input")]

    assert rows() == [1, 1]
    store.cancel(job.id)
    assert Begun(job.id, 1, None) in queue.begun()
    queue.forget([(job.id, 1)])
    assert rows() == [0, 0]
