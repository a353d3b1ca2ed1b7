"""Deletes what ended jobs have left in the storage: the last worker of one may have died before it could."""

import time
from collections.abc import Callable

import sqlalchemy as sa

from sae_service.jobs import database as db
from sae_service.jobs import tables
from sae_service.jobs.attempts import promised, uncommitted
from sae_service.jobs.records import TERMINAL
from sae_service.storage.objects import Storage

UNCOLLECTED = (tables.jobs.c.status.in_(TERMINAL), ~tables.jobs.c.collected)


class Collection:
    """Looks at the folder of each job a lease after it was first seen to have ended: whoever may have written for it has
    stopped itself by then. And again a lease later, until there is nothing in it but the job's checkpoints.
    """

    def __init__(
        self, database: db.Database, storage: Storage, lease_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._database, self._storage, self._lease_s, self._clock = database, storage, lease_s, clock
        self._due: dict[str, float] = {}

    def look(self) -> None:
        """One look at all jobs whose turn it is; as long as the storage takes, so it is to have a thread of its own.

        Raises:
            ServiceUnavailable: the database is away.
            StorageFailure: the storage is, or has failed with one job; the next look begins with the others.
        """
        now = self._clock()
        self._due = {job_id: self._due.get(job_id, now + self._lease_s) for job_id in self._uncollected()}
        for job_id in [job_id for job_id, due in self._due.items() if due <= now]:
            self._due[job_id] = self._clock() + self._lease_s
            self._collect(job_id)

    def _uncollected(self) -> list[str]:
        with self._database.transaction() as connection:
            return list(connection.execute(sa.select(tables.jobs.c.id).where(*UNCOLLECTED)).scalars())

    def _collect(self, job_id: str) -> None:
        written = self._storage.folders(f"jobs/{job_id}")
        mine = (tables.jobs.c.id == job_id, *UNCOLLECTED)
        with self._database.transaction() as connection:
            # After the listing and before its checkpoints are read: an ended job gets no more of them.
            if connection.execute(sa.select(tables.jobs.c.id).where(*mine)).one_or_none() is None:
                return
            left = uncommitted(connection, job_id, written)
            if not left:
                connection.execute(sa.update(tables.jobs).where(*mine).values(collected=True))
            unneeded = left - promised(connection, left)
        for key in sorted(unneeded):
            self._storage.delete(key)
