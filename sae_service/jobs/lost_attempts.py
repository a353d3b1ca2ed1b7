"""Finds attempts whose worker is gone and queues their jobs again."""

import logging
import threading
import time
from collections.abc import Callable

import sqlalchemy as sa

from sae_service.errors import DatabaseFailure, ServiceUnavailable, StorageFailure, WorkerCrashed
from sae_service.jobs import database as db
from sae_service.jobs import tables
from sae_service.jobs.attempts import HELD, STOPPING, count_crash, requeue, settle
from sae_service.jobs.endings import attempt_ended
from sae_service.jobs.presence import is_present
from sae_service.jobs.queue import Queue
from sae_service.jobs.records import ACTIVE

log = logging.getLogger("lost_attempts")
Sign = tuple[int, int]
"""An attempt's number and its count of signs of life."""
UNCLAIMED = -1


class LostAttempts:
    """Declares an attempt lost when its heartbeat has not changed for a whole lease *as seen from here*.

    No clock of another machine is read, and what was seen before the database was away, or before a pause of our own
    looking, is forgotten: an outage makes every worker look dead, and so does a machine that was frozen as a whole.
    """

    def __init__(self, database: db.Database, lease_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._database, self._lease_s, self._clock = database, lease_s, clock
        self._queue = Queue(database)
        self._seen: dict[str, tuple[Sign, float]] = {}
        self._ended = clock()

    def look(self, may_look: Callable[[], bool] = lambda: True) -> None:
        """One look at all attempts, if it may; to be called several times a lease, or nothing is ever found lost.

        Args:
            may_look: what has to be done before; an outage that it meets counts too.

        Raises:
            ServiceUnavailable: the database is away.
        """
        began = self._clock()
        if began - self._ended >= self._lease_s / 2:
            # We did not run, and perhaps no worker did either.
            self._seen.clear()
        has_looked, over = False, list[tuple[str, int]]()
        try:
            if may_look():
                over = self._look(began)
            has_looked = True
        finally:
            if not has_looked:
                # Wherever it failed: a full disk answers whoever reads, and refuses the signs of life.
                self._seen.clear()
            self._ended = self._clock()
        self._queue.forget(over)

    def _look(self, began: float) -> list[tuple[str, int]]:
        """Declares lost what is. Returns the attempts of which the queue needs to know no longer."""
        self._write_nothing()
        answered = self._clock()
        owned = self._owned()
        taken, over = self._taken()
        # Read once: whatever holds us up from here on makes nobody look older.
        now = self._clock()
        blind_s = 0.0
        if answered - began >= self._lease_s / 2:
            # Perhaps no worker could renew either, for as long as we have not looked: none of that time counts.
            blind_s = now - self._ended
        elif now - began >= self._lease_s / 2:
            blind_s = now - began
        known, self._seen = self._seen, {}
        for job_id, sign in (owned | taken).items():
            old, since = known.get(job_id, (None, now))
            self._seen[job_id] = (sign, since + blind_s if old == sign else now)
            if now - self._seen[job_id][1] >= self._lease_s:
                self._declare_lost(job_id, sign)
        return over

    def _write_nothing(self) -> None:
        """Waits for SQLite's lock as a sign of life does: who holds it makes every worker look dead."""
        with self._database.transaction() as connection:
            connection.execute(sa.update(tables.jobs).where(sa.false()).values(heartbeat=0))

    def _owned(self) -> dict[str, Sign]:
        """The attempts that are being worked on."""
        columns = tables.jobs.c
        query = sa.select(columns.id, columns.attempt, columns.heartbeat).where(columns.status.in_(ACTIVE))
        with self._database.transaction() as connection:
            return {row.id: (row.attempt, row.heartbeat) for row in connection.execute(query)}

    def _taken(self) -> tuple[dict[str, Sign], list[tuple[str, int]]]:
        """The attempts that a worker took out of the queue but has not claimed, since it may have died in between; and those
        that are over. Read is what has been taken, never what waits.
        """
        columns, begun = tables.jobs.c, self._queue.begun()
        query = sa.select(columns.id, columns.attempt, columns.status).where(columns.id.in_({one.job_id for one in begun}))
        with self._database.transaction() as connection:
            jobs = {(row.id, row.attempt): row.status for row in connection.execute(query)}
            present = sa.select(tables.workers.c.name).where(is_present(self._database, self._lease_s))
            there = set(connection.execute(present).scalars())
        taken, over = dict[str, Sign](), list[tuple[str, int]]()
        for one in begun:
            status = jobs.get((one.job_id, one.attempt))
            if status == "queued":
                taken[one.job_id] = (one.attempt, UNCLAIMED)
            elif status not in ACTIVE and one.worker not in there:
                over.append((one.job_id, one.attempt))
        return taken, over

    def _declare_lost(self, job_id: str, sign: Sign) -> None:
        attempt, heartbeat = sign
        columns = tables.jobs.c
        if heartbeat == UNCLAIMED:
            unchanged = (columns.status == "queued",)
        else:
            unchanged = (columns.status.in_(ACTIVE), columns.heartbeat == heartbeat)
        mine = (columns.id == job_id, columns.attempt == attempt, *unchanged)
        free = sa.select(columns.id).where(*mine).with_for_update(skip_locked=True)
        # The update takes the row's lock, so that of two who look only one finds the attempt unchanged.
        lost = sa.update(tables.jobs).where(*mine)
        with self._database.transaction() as connection:
            if connection.execute(free).one_or_none() is None:
                # A transaction holds it: of a worker that lives, or of one whose end the server has yet to notice. The other
                # jobs must not wait for that.
                return
            row = connection.execute(lost.values(heartbeat=columns.heartbeat + 1).returning(*HELD)).one_or_none()
            if row is None:
                return
            error, became = None, ""
            if row.status == "queued":
                requeue(connection, self._queue, row, "preempted", "A worker took the job and vanished before it began.")
            elif (row.status, row.status_reason) == ("running", STOPPING):
                requeue(connection, self._queue, row, "preempted", "The worker was ended before it had saved the job.")
            elif not settle(connection, row):
                error = WorkerCrashed(f"Worker {row.worker} has shown no sign of life.").as_dict()
                became = count_crash(connection, self._queue, row, error)
        if row.status != "queued":
            how = "preempted" if row.status_reason == STOPPING else "crashed"
            attempt_ended(job_id, attempt, row.status, how, error, became)


def keep_looking(look: Callable[[], None], lease_s: float, over: threading.Event) -> None:
    """Calls `look` several times a lease until it is over, whatever becomes of one look."""
    while not over.wait(lease_s / 6):
        try:
            look()
        except (ServiceUnavailable, DatabaseFailure, StorageFailure) as error:
            log.warning("%s", error)
        except Exception:  # a bug in one look: without the next ones nobody finds lost jobs, and a worker loses its own
            log.exception("a look at the jobs has failed")
