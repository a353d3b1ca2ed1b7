"""What a worker does with a job: claim an attempt, show signs of life, record results, end it.

Every write is conditional on the attempt's number, in the same transaction: an attempt that was declared lost can
compute on, but nothing that it reports counts.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from sae_service.errors import LeaseLost
from sae_service.jobs import database as db
from sae_service.jobs import tables
from sae_service.jobs.endings import attempt_ended
from sae_service.jobs.queue import Queue
from sae_service.jobs.records import ACTIVE, TERMINAL
from sae_service.jobs.rows import GPUS, add_event, add_status_event, best_step, new_id, now, storable
from sae_service.storage.job_folders import log_folder

MAX_CRASHES = 3
STOPPING = "worker_stopping"
HELD = tuple(tables.jobs.c[name] for name in ("id", "status", "status_reason", "attempt", "crashes", "worker"))
"""What is read of a job whose row is held; not its spec, which may be long."""


class Attempt:
    """One attempt at one job, as its worker sees it. Every method raises LeaseLost if the job is no longer ours."""

    def __init__(self, database: db.Database, job_id: str, number: int) -> None:
        self._database, self.job_id, self.number = database, job_id, number
        self._queue = Queue(database)
        self._tried: int | None = None

    def claim(self, worker: str) -> dict[str, Any] | None:
        """Starts the attempt and returns the job's spec, or None if it is not to be started (any more).

        Whoever holds it already is answered as before: the answer may have been lost with the connection.
        """
        mine = (tables.jobs.c.id == self.job_id, tables.jobs.c.attempt == self.number)
        held = sa.select(tables.jobs.c.spec).where(*mine, tables.jobs.c.status.in_(ACTIVE), tables.jobs.c.worker == worker)
        update = (
            sa.update(tables.jobs)
            .where(*mine, tables.jobs.c.status == "queued")
            .values(
                status="running", status_reason=None, worker=worker, heartbeat=0,
                started_at=sa.func.coalesce(tables.jobs.c.started_at, now()),
            )
            .returning(tables.jobs.c.spec)
        )  # fmt: skip
        with self._database.transaction() as connection:
            spec = connection.execute(update).scalar_one_or_none()
            if spec is None:
                return connection.execute(held).scalar_one_or_none()
            add_status_event(connection, self.job_id, "running", f"Attempt {self.number} started on {worker}.")
        return spec

    def renew(self, is_stopping: bool = False) -> str:
        """A sign of life. Returns the job's status, which is "cancelling" or "pausing" when a user has asked for that.

        Args:
            is_stopping: the worker was told to stop; if it is ended before it has saved the job, that is no crash.
        """
        with self._owned() as (connection, row):
            if is_stopping and (row.status, row.status_reason) == ("running", None):
                connection.execute(sa.update(tables.jobs).where(tables.jobs.c.id == self.job_id).values(status_reason=STOPPING))
            return row.status

    def origin_key(self) -> str | None:
        """Where the checkpoint of another job is that this one began with."""
        return self._of_job(tables.jobs.c.origin_key)

    def project(self) -> str | None:
        """Whose job it is; None if it is gone."""
        return self._of_job(tables.jobs.c.project)

    def trace(self) -> str | None:
        """Where the job's submission is in a trace."""
        return self._of_job(tables.jobs.c.trace)

    def _of_job(self, column: sa.Column[Any]) -> Any:
        with self._database.transaction() as connection:
            return connection.execute(sa.select(column).where(tables.jobs.c.id == self.job_id)).scalar_one_or_none()

    def checkpoint_keys(self) -> list[str]:
        """Where the job's own checkpoints are, the newest first."""
        table = tables.checkpoints
        query = sa.select(table.c.key).where(table.c.job_id == self.job_id).order_by(table.c.step.desc())
        with self._database.transaction() as connection:
            return list(connection.execute(query).scalars())

    def orphans(self, written: set[str]) -> set[str]:
        """Those of the keys that nobody needs: no checkpoints of the job, nor what another job has yet to begin with."""
        with self._database.transaction() as connection:
            return orphans(connection, self.job_id, written)

    def is_last(self) -> bool:
        """Whether the job has ended, or is gone, so that no attempt follows. Never raises LeaseLost."""
        status = self._of_job(tables.jobs.c.status)
        return status is None or status in TERMINAL

    def is_gone(self) -> bool:
        """Whether the job has been deleted. Never raises LeaseLost."""
        return self._of_job(tables.jobs.c.id) is None

    def event(self, level: str, message: str) -> None:
        """Records something that a user may want to read. Repeated because it was not answered, it is recorded once."""
        with self._owned() as (connection, _):
            if not self._is_told(connection, message):
                self._tried = add_event(connection, self.job_id, "message", message, {}, level)
        self._tried = None

    def _is_told(self, connection: sa.Connection, message: str) -> bool:
        """Whether the event that was last tried to be recorded is this one, and is there."""
        table = tables.events
        here = (table.c.job_id == self.job_id, table.c.seq == self._tried)
        found = sa.select(table.c.seq).where(*here, table.c.type == "message", table.c.message == storable(message))
        return connection.execute(found).one_or_none() is not None

    def metrics(self, rows: list[dict[str, Any]], progress: dict[str, Any]) -> None:
        """Records one row for each SAE, all of one step; what an earlier attempt has for it and later ones is replaced."""
        table = tables.metrics
        with self._owned(tables.jobs.c.progress) as (connection, row):
            # A fixed number of statements: each is a journey to the database, and checkpoints wait behind.
            saes = [row["sae"] for row in rows]
            here = (table.c.job_id == self.job_id, table.c.sae.in_(saes), table.c.step >= rows[0]["step"])
            connection.execute(sa.delete(table).where(*here))
            added = [{"job_id": self.job_id, "sae": row["sae"], "step": row["step"], "data": row} for row in rows]
            # As one statement with many rows, not as many: their driver lets the server wait for us for ever afterwards.
            connection.execute(sa.insert(table).values(added))
            known = (row.progress or {}).get("held_out", {})
            progress = {"held_out": known if _is_past(known, rows[0]["step"]) else {}, **progress, "updated_at": now()}
            values = {"progress": progress}
            connection.execute(sa.update(tables.jobs).where(tables.jobs.c.id == self.job_id).values(values))

    def commit(self, checkpoint: dict[str, Any], keep: int) -> list[str]:
        """Makes a written checkpoint part of the job. Returns the storage keys whose files nobody needs any more.

        A final checkpoint is the job's success, in the same transaction. While the job is being cancelled nothing is
        committed. Progress makes earlier crashes forgotten: what counts is how often a job crashes at one place.
        """
        with self._owned() as (connection, row):
            if self._has(connection, checkpoint["key"]):
                # The answer to the same commit was lost with the connection: what it made must not be deleted.
                return []
            if row.status == "cancelling":
                return [checkpoint["key"]]
            # An attempt that went on from before a damaged checkpoint comes by its step again.
            replaced = self._forget(connection, tables.checkpoints.c.step >= checkpoint["step"])
            if not replaced:
                connection.execute(sa.update(tables.jobs).where(tables.jobs.c.id == self.job_id).values(crashes=0))
            values = {**checkpoint, "id": new_id("ckpt"), "job_id": self.job_id, "created_at": now()}
            connection.execute(sa.insert(tables.checkpoints).values(values))
            data = {"checkpoint": values["id"], "step": values["step"], "tokens": values["tokens"]}
            message = f"Checkpoint at step {values['step']}."
            add_event(connection, self.job_id, "checkpoint", message, data)
            if values["is_final"]:
                end_job(connection, self.job_id, "succeeded", "The job succeeded.")
            given_up = replaced + self._retire(connection, keep)
            unneeded = sorted(set(given_up) - promised(connection, given_up))
        if checkpoint["is_final"]:
            attempt_ended(self.job_id, self.number, "running", "succeeded")
        return unneeded

    def _has(self, connection: sa.Connection, key: str) -> bool:
        columns = tables.checkpoints.c
        query = sa.select(columns.id).where(columns.job_id == self.job_id, columns.key == key)
        return connection.execute(query).one_or_none() is not None

    def _retire(self, connection: sa.Connection, keep: int) -> list[str]:
        """Forgets the checkpoints before the last `keep` ones; a final one and the best one count beside them, and one that
        another job has yet to go on from stays.
        """
        table, columns = tables.checkpoints, tables.jobs.c
        best = best_step(connection, self.job_id)
        needed = sa.select(columns.id).where(columns.origin_key == table.c.key, columns.status.not_in(TERMINAL))
        mine = sa.select(table.c.step).where(table.c.job_id == self.job_id, ~table.c.is_final, ~needed.exists())
        mine = mine if best is None else mine.where(table.c.step != best)
        old = connection.execute(mine.order_by(table.c.step.desc()).offset(keep)).scalars().all()
        return self._forget(connection, table.c.step.in_(old))

    def _forget(self, connection: sa.Connection, which: sa.ColumnElement[bool]) -> list[str]:
        """Takes checkpoints out of the job and returns their keys."""
        table = tables.checkpoints
        gone = sa.delete(table).where(table.c.job_id == self.job_id, which).returning(table.c.key)
        return list(connection.execute(gone).scalars())

    def fail(self, error: dict[str, Any]) -> None:
        """Ends the job in failure."""
        with self._owned() as (connection, _):
            end_job(connection, self.job_id, "failed", f"The job failed: {error['message']}", error=error)
        attempt_ended(self.job_id, self.number, "running", "failed", error)

    def cancel(self) -> None:
        """Ends the job as its user asked; its training process is gone."""
        with self._owned() as (connection, _):
            end_job(connection, self.job_id, "cancelled", "The job was cancelled.")
        attempt_ended(self.job_id, self.number, "cancelling", "cancelled")

    def release(self) -> None:
        """Gives the job back unharmed: paused, if its user asked for that, or for another worker to go on with."""
        with self._owned() as (connection, row):
            if not settle(connection, row):
                requeue(connection, self._queue, row, "preempted", "The worker stops; the job waits for another one.")
        attempt_ended(self.job_id, self.number, row.status, "preempted")

    def record_crash(self, error: dict[str, Any]) -> None:
        """Counts a crash: the job is queued again, or fails at the third."""
        with self._owned() as (connection, row):
            became = "" if settle(connection, row) else count_crash(connection, self._queue, row, error)
        attempt_ended(self.job_id, self.number, row.status, "crashed", error, became)

    @contextmanager
    def _owned(self, *more: sa.Column[Any]) -> Iterator[tuple[sa.Connection, sa.Row[Any]]]:
        """A transaction that holds the job's row, of which HELD and `more` are read, and which shows a sign of life by the way."""
        columns = tables.jobs.c
        update = (
            sa.update(tables.jobs)
            .where(columns.id == self.job_id, columns.attempt == self.number, columns.status.in_(ACTIVE))
            .values(heartbeat=columns.heartbeat + 1)
            .returning(*HELD, *more)
        )
        with self._database.transaction() as connection:
            row = connection.execute(update).one_or_none()
            if row is None:
                raise LeaseLost(f"attempt {self.number} at job {self.job_id} is over")
            yield connection, row


def _is_past(held_out: dict[str, Any], step: int) -> bool:
    """Whether all held-out figures are of this step or an earlier one."""
    return all(figures["step"] <= step for figures in held_out.values())


def promised(connection: sa.Connection, keys: Iterable[str]) -> set[str]:
    """Those of the keys of checkpoints with which a job that has not ended may yet have to begin."""
    columns = tables.jobs.c
    query = sa.select(columns.origin_key).where(columns.origin_key.in_(list(keys)), columns.status.not_in(TERMINAL))
    return set(connection.execute(query).scalars())


def orphans(connection: sa.Connection, job_id: str, written: set[str]) -> set[str]:
    """Those of the keys below which there are files of a job that nobody needs."""
    # First: a new job begins only with what is committed.
    unknown = uncommitted(connection, job_id, written)
    return unknown - promised(connection, unknown)


def uncommitted(connection: sa.Connection, job_id: str, written: set[str]) -> set[str]:
    """Those of the keys below which there are files of a job that are no checkpoint of it, nor its logs while it is there."""
    query = sa.select(tables.checkpoints.c.key).where(tables.checkpoints.c.job_id == job_id)
    is_there = connection.execute(sa.select(tables.jobs.c.id).where(tables.jobs.c.id == job_id)).one_or_none() is not None
    return written - set(connection.execute(query).scalars()) - ({log_folder(job_id)} if is_there else set())


def end_job(
    connection: sa.Connection, job_id: str, status: str, message: str, error: dict[str, Any] | None = None
) -> None:
    """Moves a job to a terminal status."""
    values = {"status": status, "status_reason": None, "error": error, "finished_at": now()}
    connection.execute(sa.update(tables.jobs).where(tables.jobs.c.id == job_id).values(values))
    level = "error" if status == "failed" else "info"
    add_status_event(connection, job_id, status, message, level=level)


def settle(connection: sa.Connection, row: sa.Row[Any]) -> bool:
    """Brings a job whose process is gone to where its user wanted it. Returns whether there was such a wish."""
    if row.status == "cancelling":
        end_job(connection, row.id, "cancelled", "The job was cancelled.")
    elif row.status == "pausing":
        values = {"status": "paused", "status_reason": None, "worker": None}
        connection.execute(sa.update(tables.jobs).where(tables.jobs.c.id == row.id).values(values))
        add_status_event(connection, row.id, "paused", "The job is paused.")
    return row.status in ("cancelling", "pausing")


def requeue(connection: sa.Connection, queue: Queue, row: sa.Row[Any], reason: str | None, message: str) -> None:
    """Queues the next attempt; from here on the one before is refused."""
    following = row.attempt + 1
    values = {"status": "queued", "status_reason": reason, "attempt": following, "worker": None}
    queued = sa.update(tables.jobs).where(tables.jobs.c.id == row.id).values(values)
    where = connection.execute(queued.returning(tables.jobs.c.queue, GPUS, tables.jobs.c.priority)).one()
    queue.add(connection, row.id, following, *where)
    level = "warning" if reason == "retry_after_crash" else "info"
    add_status_event(connection, row.id, "queued", message, reason, level)


def count_crash(connection: sa.Connection, queue: Queue, row: sa.Row[Any], error: dict[str, Any]) -> str:
    """Queues the job again, or fails it if it has crashed too often. Returns which, as a sentence."""
    crashes = row.crashes + 1
    connection.execute(sa.update(tables.jobs).where(tables.jobs.c.id == row.id).values(crashes=crashes))
    count = f"(crash {crashes} of {MAX_CRASHES})"
    if crashes < MAX_CRASHES:
        again = f"The job is queued again {count}."
        requeue(connection, queue, row, "retry_after_crash", f"{error['message']} {again}")
        return again
    end_job(connection, row.id, "failed", f"The job failed {count}: {error['message']}", error)
    return f"The job failed {count}."
