"""What a user does with jobs: submit, look, pause, cancel."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from sae_service import tracing
from sae_service.errors import Conflict, KeyReused, NotFound, ServiceUnavailable
from sae_service.jobs import database as db
from sae_service.jobs import tables
from sae_service.jobs.attempts import HELD, end_job, requeue
from sae_service.jobs.history import History
from sae_service.jobs.migration import check
from sae_service.jobs.owner import Owner
from sae_service.jobs.presence import is_present, workers
from sae_service.jobs.queue import Queue
from sae_service.jobs.records import TERMINAL, Checkpoint, Job, JobSummary, Worker
from sae_service.jobs.rows import (
    GPUS,
    LISTED,
    SHOWN,
    WHOLE,
    add_status_event,
    new_id,
    now,
    summary,
    to_job,
    to_summary,
)  # fmt: skip

LATEST_CHECKPOINT = (
    sa.select(tables.checkpoints.c.id)
    .where(tables.checkpoints.c.job_id == tables.jobs.c.id)
    .order_by(tables.checkpoints.c.step.desc())
    .limit(1)
    .correlate(tables.jobs)
    .scalar_subquery()
    .label("latest_checkpoint")
)

AT_ONCE = 1000
"""Ids in one query."""
DELETED_AT_ONCE = 10_000
"""Rows of metrics that are deleted in one transaction: on SQLite nobody else writes meanwhile."""


class JobStore(History):
    """All jobs of one database."""

    def __init__(self, database: db.Database, lease_s: float = 60.0) -> None:
        super().__init__(database)
        self._lease_s, self._owner = lease_s, Owner()
        self._queue = Queue(database)
        serves = (tables.workers.c.queue == tables.jobs.c.queue, tables.workers.c.gpus == GPUS, is_present(database, lease_s))
        has_worker = sa.select(tables.workers.c.name).where(*serves).correlate(tables.jobs).exists().label("has_worker")
        self._select = sa.select(*SHOWN, LATEST_CHECKPOINT, has_worker)

    def of(self, owner: Owner) -> "JobStore":
        """The same jobs as one of their owners may see them; what it submits belongs to that one."""
        seen = copy(self)
        seen._owner, seen._select = owner, self._select.where(owner.may_see)
        return seen

    def submit(
        self, spec: dict[str, Any], request_key: str | None = None, request_hash: str | None = None,
        origin: Checkpoint | None = None,
    ) -> tuple[Job, bool]:  # fmt: skip
        """Stores a job and queues its first attempt, both or neither. Returns the job and whether it is new.

        Args:
            spec: a parsed JobSpec as JSON.
            request_key: one job is made for each key; a repetition returns the first.
            request_hash: says whether a repetition asks for the same.
            origin: a checkpoint to go on from.

        Raises:
            NotFound: the origin has been given up meanwhile.
            KeyReused: the key was used for another request.
        """
        known = self.requested(request_key, request_hash)
        if known is not None:
            return known, False
        row = {
            "id": new_id("job"), "status": "queued", "queue": spec["queue"], "priority": spec["priority"], "spec": spec,
            "summary": summary(spec), "metadata": spec["metadata"], "attempt": 1, "created_at": now(),
            "request_key": request_key, "request_hash": request_hash, "project": self._owner.project,
            "submitter": self._owner.submitter, "trace": tracing.current(), **_origin_columns(origin),
        }  # fmt: skip
        try:
            with self._database.transaction() as connection:
                self._hold(connection, origin)
                connection.execute(sa.insert(tables.jobs).values(row))
                for name, value in spec["metadata"].items():
                    connection.execute(sa.insert(tables.labels).values(name=name, value=value, job_id=row["id"]))
                add_status_event(connection, row["id"], "queued", "The job is queued.")
                self._queue.add(connection, row["id"], 1, spec["queue"], spec.get("gpus", 1), spec["priority"])
        except IntegrityError:
            known = self.requested(request_key, request_hash)
            if known is None:
                raise
            return known, False
        return self.get(row["id"]), True

    def _hold(self, connection: sa.Connection, origin: Checkpoint | None) -> None:
        """Makes sure that a checkpoint is there until the transaction's end, when the new job's row keeps it."""
        if origin is None:
            return
        # The row of the job that owns it is what a commit locks before it gives up old checkpoints.
        connection.execute(sa.update(tables.jobs).where(tables.jobs.c.id == origin.job_id).values(n_events=tables.jobs.c.n_events))
        if connection.execute(sa.select(tables.checkpoints.c.id).where(tables.checkpoints.c.id == origin.id)).one_or_none() is None:
            raise NotFound(f"job {origin.job_id} has no checkpoint {origin.id} any more")

    def requested(self, key: str | None, content: str | None) -> Job | None:
        """The job that a request has made before. Raises KeyReused if its key was used for another one."""
        if key is None:
            return None
        with self._database.transaction() as connection:
            whole = self._select.add_columns(*WHOLE, tables.jobs.c.request_hash)
            row = connection.execute(whole.where(tables.jobs.c.request_key == key)).one_or_none()
        if row is None:
            return None
        if row.request_hash != content:
            raise KeyReused("the Idempotency-Key was used for another request already; use a new one")
        return to_job(row)

    def get(self, job_id: str) -> Job:
        """One job. Raises NotFound."""
        return to_job(self._row(job_id, *WHOLE))

    def summary(self, job_id: str) -> JobSummary:
        """One job as a list shows it. Raises NotFound."""
        return to_summary(self._row(job_id, *LISTED))

    def _row(self, job_id: str, *columns: sa.ColumnElement[Any]) -> sa.Row[Any]:
        with self._database.transaction() as connection:
            row = connection.execute(self._select.add_columns(*columns).where(tables.jobs.c.id == job_id)).one_or_none()
        return _found(job_id, row)

    def signs(self, job_ids: list[str]) -> dict[str, tuple[Any, ...]]:
        """What changes when there is news of a job, for those of the jobs that there are: its status, events and progress."""
        columns = tables.jobs.c
        query = sa.select(columns.id, columns.status, columns.n_events, columns.progress["step"].as_integer())
        signs: dict[str, tuple[Any, ...]] = {}
        with self._database.transaction() as connection:
            for start in range(0, len(job_ids), AT_ONCE):
                rows = connection.execute(query.where(columns.id.in_(job_ids[start : start + AT_ONCE])))
                signs |= {job_id: tuple(sign) for job_id, *sign in rows}
        return signs

    def find(
        self, limit: int, after: str | None = None, newest_first: bool = True, status: str | None = None,
        metadata: dict[str, str] | None = None,
    ) -> list[JobSummary]:  # fmt: skip
        """Up to `limit` jobs in the order of submission, those behind the job `after`. Raises NotFound for `after`."""
        column, query = tables.jobs.c.id, self._select.add_columns(*LISTED).select_from(tables.jobs)
        for name, value in (metadata or {}).items():
            label = tables.labels.alias()
            query = query.join(label, label.c.job_id == tables.jobs.c.id).where(label.c.name == name, label.c.value == value)
            # In the order of its key: no more is read than what is returned.
            column = label.c.job_id
        if after is not None:
            self._row(after)
            query = query.where(column < after if newest_first else column > after)
        if status is not None:
            query = query.where(tables.jobs.c.status == status)
        with self._database.transaction() as connection:
            rows = connection.execute(query.order_by(column.desc() if newest_first else column).limit(limit)).all()
        return [to_summary(row) for row in rows]

    def successors(self, job_ids: Sequence[str], kind: str) -> list[JobSummary]:
        """The jobs of a kind that have succeeded, and began with a checkpoint of one of these, newest first."""
        columns = tables.jobs.c
        mine = (columns.origin_job_id.in_(job_ids), columns.status == "succeeded", columns.summary["kind"].as_string() == kind)
        query = self._select.add_columns(*LISTED).where(*mine).order_by(columns.id.desc())
        with self._database.transaction() as connection:
            return [to_summary(row) for row in connection.execute(query).all()]

    def cancel(self, job_id: str) -> Job:
        """Ends a waiting job at once and asks a running one to end. Raises NotFound, or Conflict if it has ended.

        A job that is being cancelled, or is cancelled, stays as it is: cancelling twice is no error.
        """
        with self._held(job_id) as (connection, row):
            if row.status in ("queued", "paused"):
                end_job(connection, job_id, "cancelled", "The job was cancelled while it waited.")
            elif row.status in ("running", "pausing"):
                self._ask(connection, job_id, "cancelling", "The job was asked to stop.")
        self._take_out_of_queue(row)
        return self._expect(job_id, "cancelling", "cancelled")

    def pause(self, job_id: str) -> Job:
        """Holds a queued job back at once, and asks a running one to save its state and stop. Raises like `cancel`."""
        with self._held(job_id) as (connection, row):
            if row.status == "queued":
                self._ask(connection, job_id, "paused", "The job is paused.")
            elif row.status == "running":
                self._ask(connection, job_id, "pausing", "The job was asked to pause.")
        self._take_out_of_queue(row)
        return self._expect(job_id, "pausing", "paused")

    def resume(self, job_id: str) -> Job:
        """Queues a paused job again. Raises Conflict if it is neither paused nor waiting or running anyway."""
        with self._held(job_id) as (connection, row):
            if row.status == "pausing":
                raise Conflict(f"job {job_id} is still pausing; resume it once it is paused")
            if row.status == "paused":
                requeue(connection, self._queue, row, None, "The job is queued again.")
        return self._expect(job_id, "queued", "running")

    def delete(self, job_id: str, delete_files: Callable[[], None]) -> None:
        """Deletes a job that has ended, with all that is known of it and its files.

        Args:
            delete_files: may take its time, nobody waits for it; if it raises, the job stays without its checkpoints, so
                that it can be deleted again.

        Raises:
            NotFound: there is no such job.
            Conflict: it has not ended, or another job has yet to go on from one of its checkpoints.
        """
        with self._held(job_id) as (connection, row):
            if row.status not in TERMINAL:
                raise Conflict(f"job {job_id} is {row.status}; cancel it first")
            columns = tables.jobs.c
            heirs = sa.select(columns.id).where(columns.origin_job_id == job_id, columns.status.not_in(TERMINAL))
            heir = connection.execute(heirs.limit(1)).scalar_one_or_none()
            if heir is not None:
                raise Conflict(f"job {heir} goes on from a checkpoint of job {job_id} and has not ended")
            # First of all: no other job can begin with a checkpoint whose files are being deleted.
            connection.execute(sa.delete(tables.checkpoints).where(tables.checkpoints.c.job_id == job_id))
        delete_files()
        while self._delete_metrics(job_id):
            pass
        with self._database.transaction() as connection:
            connection.execute(sa.delete(tables.jobs).where(columns.id == job_id))
        with suppress(ServiceUnavailable):
            self._queue.forget([(job_id, row.attempt)])

    def _delete_metrics(self, job_id: str) -> bool:
        """Deletes some of a job's metrics. Returns whether there are more, beside what goes with the job."""
        table = tables.metrics
        mine = sa.select(table.c.step).where(table.c.job_id == job_id)
        with self._database.transaction() as connection:
            until = connection.execute(mine.order_by(table.c.step).offset(DELETED_AT_ONCE).limit(1)).scalar_one_or_none()
            if until is not None:
                connection.execute(sa.delete(table).where(table.c.job_id == job_id, table.c.step <= until))
        return until is not None

    @contextmanager
    def _held(self, job_id: str) -> Iterator[tuple[sa.Connection, sa.Row[Any]]]:
        """A transaction that holds the job's row, and the row. Raises NotFound."""
        columns = tables.jobs.c
        touch = sa.update(tables.jobs).where(columns.id == job_id, self._owner.may_see).values(n_events=columns.n_events)
        with self._database.transaction() as connection:
            yield connection, _found(job_id, connection.execute(touch.returning(*HELD)).one_or_none())

    def _ask(self, connection: sa.Connection, job_id: str, status: str, message: str) -> None:
        values = {"status": status, "status_reason": None}
        connection.execute(sa.update(tables.jobs).where(tables.jobs.c.id == job_id).values(values))
        add_status_event(connection, job_id, status, message)

    def _take_out_of_queue(self, row: sa.Row[Any]) -> None:
        # Only for tidiness: a worker that has taken the attempt finds that it may not claim it.
        if row.status == "queued":
            with suppress(ServiceUnavailable):
                self._queue.drop(row.id, row.attempt)

    def _expect(self, job_id: str, *statuses: str) -> Job:
        job = self.get(job_id)
        if job.status not in statuses:
            ended = "has already been cancelled" if job.status == "cancelled" else f"has already {job.status}"
            raise Conflict(f"job {job_id} {ended if job.is_terminal else f'is {job.status}'}")
        return job

    def check(self) -> None:
        """Raises ServiceUnavailable if the database does not answer, WrongVersion if it is a newer release's by now."""
        check(self._database)

    def workers(self) -> list[Worker]:
        """The workers that are there."""
        return workers(self._database, self._lease_s, self._owner.may_see)


def _found(job_id: str, row: sa.Row[Any] | None) -> sa.Row[Any]:
    if row is None:
        raise NotFound(f"there is no job {job_id}")
    return row


def _origin_columns(origin: Checkpoint | None) -> dict[str, Any]:
    if origin is None:
        return {}
    seen = {"job_id": origin.job_id, "checkpoint_id": origin.id, "step": origin.step, "tokens": origin.tokens}
    return {"origin": seen, "origin_key": origin.key, "origin_job_id": origin.job_id}
