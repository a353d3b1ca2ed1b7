"""Who works on what next: the only module that knows DBOS.

Each attempt at a job is a DBOS workflow of its own, called `<job id>.<attempt>`. DBOS hands it to one worker, by
priority and then by age; whether that worker's writes count is decided by the attempt's number in our own table.
"""

import json
import logging
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from dbos import DBOS, DBOSClient, EnqueueOptions, Serializer

from sae_service.jobs.database import Database, reached

APPLICATION = "sae-service"
VERSION = "1"
"""Pinned: by default DBOS derives it from the code, and a new release would leave the queued jobs of the old one."""
WORKFLOW = "train"
LOWEST_PRIORITY = 1_000_001
AT_ONCE = 10_000
"""Names in one query: PostgreSQL takes 65 535."""


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


class Queue:
    """Adds attempts, from any process."""

    def __init__(self, database: Database) -> None:
        self._client = DBOSClient(
            system_database_engine=database.engine, serializer=JSONSerializer(), application_name=APPLICATION, lazy=True,
            retry_connection_errors=False,
        )  # fmt: skip

    def add(self, connection: sa.Connection, spec: dict[str, Any], job_id: str, attempt: int) -> None:
        """Queues an attempt as part of the caller's transaction; `spec` is the job's."""
        options = EnqueueOptions(
            workflow_name=WORKFLOW,
            queue_name=_lane(spec["queue"], spec.get("gpus", 1)),
            workflow_id=_name(job_id, attempt),
            app_version=VERSION,
            priority=LOWEST_PRIORITY - spec["priority"],
        )
        self._client.enqueue_in_transaction(connection, options, job_id, attempt)

    def drop(self, job_id: str, attempt: int) -> None:
        """Takes an attempt out of the queue."""
        with reached():
            self._client.cancel_workflow(_name(job_id, attempt))

    def taken(self, attempts: list[tuple[str, int]]) -> set[tuple[str, int]]:
        """Those of `attempts` that wait no longer: some worker has taken them out of the queue."""
        by_name = {_name(*attempt): attempt for attempt in attempts}
        names, waiting = list(by_name), set[tuple[str, int]]()
        for start in range(0, len(names), AT_ONCE):
            with reached():
                found = self._client.list_workflows(
                    workflow_ids=names[start : start + AT_ONCE], status=["ENQUEUED", "DELAYED"],
                    load_input=False, load_output=False,
                )  # fmt: skip
            waiting |= {by_name[workflow.workflow_id] for workflow in found}
        return set(attempts) - waiting


def _name(job_id: str, attempt: int) -> str:
    return f"{job_id}.{attempt}"


def _lane(queue: str, gpus: int) -> str:
    """Jobs that need another number of GPUs wait apart, so that a worker never takes what it cannot run."""
    return queue if gpus == 1 else f"{queue}:{gpus}"


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
