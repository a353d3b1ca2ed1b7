"""Who works on what next: the only module that knows DBOS.

Each attempt at a job is a DBOS workflow of its own, called `<job id>.<attempt>`. DBOS hands it to one worker, by
priority and then by age; whether that worker's writes count is decided by the attempt's number in our own table.
"""

import json
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from dbos import DBOS, DBOSClient, EnqueueOptions, Serializer

from sae_service.jobs.database import Database, reached
from sae_service.schema import SPEC_VERSION

APPLICATION = "sae-service"
VERSION = "1"
"""Pinned: by default DBOS derives it from the code, and a new release would leave the queued jobs of the old one."""
WORKFLOW = "train"
LOWEST_PRIORITY = 1_000_001
AT_ONCE = 1000
"""Attempts that have ended, or wait for an older release, in one look: however many there are, a look costs no more."""
COLUMNS = ("workflow_uuid", "status", "name", "application_name", "queue_name", "executor_id", "completed_at")


class JSONSerializer(Serializer):
    """Arguments as JSON; DBOS would pickle them, and whoever writes to the database could run code in a worker."""

    def serialize(self, data: Any) -> str:
        """Anything that is not JSON as its text."""
        return json.dumps(data, default=str)

    def deserialize(self, serialized_data: str) -> Any:
        """The inverse of `serialize`."""
        return json.loads(serialized_data)

    def name(self) -> str:
        """How DBOS tells serializers apart."""
        return "sae_service_json"


@dataclass(frozen=True)
class Begun:
    """An attempt that waits no longer, and the worker that has it in hand; None if it has ended."""

    job_id: str
    attempt: int
    worker: str | None


class Queue:
    """Adds attempts, from any process."""

    def __init__(self, database: Database) -> None:
        self._client = DBOSClient(
            system_database_engine=database.engine, serializer=JSONSerializer(), application_name=APPLICATION, lazy=True,
            retry_connection_errors=False,
        )  # fmt: skip
        self._database = database
        self._workflows = sa.table("workflow_status", *map(sa.column, COLUMNS), schema=None if database.is_sqlite else "dbos")
        # Read from its table, with conditions word for word as in its partial indexes: DBOS's own list goes through all that
        # waits on SQLite.
        columns = self._workflows.c
        ours = sa.or_(columns.application_name == APPLICATION, columns.application_name.is_(None))
        self._ours = sa.select(columns.workflow_uuid, columns.executor_id).where(columns.name == WORKFLOW, ours)

    def add(self, connection: sa.Connection, job_id: str, attempt: int, queue: str, gpus: int, priority: int) -> None:
        """Queues an attempt at a job for so many GPUs, as part of the caller's transaction."""
        options = EnqueueOptions(
            workflow_name=WORKFLOW,
            queue_name=_lane(queue, gpus),
            workflow_id=_name(job_id, attempt),
            app_version=VERSION,
            priority=LOWEST_PRIORITY - priority,
        )
        self._client.enqueue_in_transaction(connection, options, job_id, attempt)

    def drop(self, job_id: str, attempt: int) -> None:
        """Takes an attempt out of the queue, unless a worker has taken it already; a look forgets it then, as all that have ended.

        Not by DBOS's own cancel, which reaches what a worker has in hand too: DBOS then waits for an outcome that nobody writes,
        and logs an error.
        """
        columns = self._workflows.c
        waiting = (columns.workflow_uuid == _name(job_id, attempt), columns.status == "ENQUEUED")
        cancelled = {"status": "CANCELLED", "queue_name": None, "completed_at": int(time.time() * 1000)}
        with self._database.transaction() as connection:
            connection.execute(sa.update(self._workflows).where(*waiting).values(cancelled))

    def begun(self) -> list[Begun]:
        """The attempts that workers have in hand, and the first AT_ONCE of those that have ended and are not forgotten."""
        has_ended = self._workflows.c.completed_at.is_not(None)
        with self._database.transaction() as connection:
            in_hand = connection.execute(self._ours.where(sa.text("status = 'PENDING'"))).all()
            ended = connection.execute(self._ours.where(has_ended).limit(AT_ONCE)).all()
        return [*(Begun(*_parts(row.workflow_uuid), row.executor_id) for row in in_hand),
                *(Begun(*_parts(row.workflow_uuid), None) for row in ended)]  # fmt: skip

    def forget(self, attempts: Iterable[tuple[str, int]]) -> None:
        """Deletes all that DBOS knows of attempts that have ended, or whose worker has."""
        names = [_name(*attempt) for attempt in attempts]
        if names:
            with reached():
                self._client.delete_workflows(names)

    def adopt(self, queue: str, gpus: int) -> None:
        """Moves attempts that an older release has queued, AT_ONCE of them, to where the workers of this one take them."""
        older = [_lane(queue, gpus, version) for version in range(1, SPEC_VERSION)]
        waiting = sa.text("status = 'ENQUEUED' AND status IN ('ENQUEUED', 'PENDING')")
        query = self._ours.where(waiting, self._workflows.c.queue_name.in_(older)).limit(AT_ONCE)
        with self._database.transaction() as connection:
            names = list(connection.execute(query).scalars())
        if names:
            with reached():
                # One that an older worker takes meanwhile is offered a second time; only one of the two can claim it.
                self._client.resume_workflows(names, queue_name=_lane(queue, gpus))


def _name(job_id: str, attempt: int) -> str:
    return f"{job_id}.{attempt}"


def _parts(name: str) -> tuple[str, int]:
    job_id, _, attempt = name.rpartition(".")
    return job_id, int(attempt)


def _lane(queue: str, gpus: int, version: int = SPEC_VERSION) -> str:
    """Jobs that need another number of GPUs, or whose specs are of another version, wait apart, so that a worker never takes
    what it cannot run or read.
    """
    lane = queue if gpus == 1 else f"{queue}:{gpus}"
    return lane if version == 1 else f"{lane}@{version}"


def migrate(database: Database) -> None:
    """Makes or updates DBOS's own tables."""
    logging.getLogger("dbos").setLevel(logging.WARNING)
    DBOS.migrate(database.url)


def take_from(database: Database, queue: str, gpus: int, worker: str, work: Callable[[str, int], None]) -> None:
    """Starts taking attempts from `queue` on a thread, one at a time, and calls `work(job_id, attempt)` for each.

    Args:
        gpus: jobs that need so many are taken, no others.
        worker: unique for each start of a process, so that DBOS never takes us for an earlier one.
    """
    DBOS(
        config={
            "name": APPLICATION,
            "system_database_engine": database.engine,
            "application_version": VERSION,
            "executor_id": worker,
            "serializer": JSONSerializer(),
            "run_migrations": False,
            # It would keep a connection for messages between workflows, and there are none.
            "use_listen_notify": False,
            "log_level": "WARNING",
        }
    )

    @DBOS.workflow(name=WORKFLOW)
    def train(job_id: str, attempt: int) -> None:
        work(job_id, attempt)

    lane = _lane(queue, gpus)
    DBOS.listen_queues([lane])
    DBOS.launch()
    DBOS.register_queue(lane, worker_concurrency=1, polling_interval_sec=0.5)


def stop_taking(wait_s: int) -> None:
    """Takes nothing more and waits for the attempt in hand."""
    DBOS.destroy(workflow_completion_timeout_sec=wait_s)
