"""Deletes what ended jobs have left in the storage: the last worker of one may have died before it could."""

import time
from collections.abc import Callable

import sqlalchemy as sa

from sae_service.jobs import database as db
from sae_service.jobs import tables
from sae_service.jobs.attempts import promised, uncommitted
from sae_service.jobs.records import TERMINAL
from sae_service.storage.job_folders import job_folder
from sae_service.storage.objects import Storage

AT_ONCE = 100
"""Jobs in one look: after an upgrade there may be many thousands that nobody has looked at."""


class Collection:
    """Looks at the folder of each job a lease after it was first seen to have ended: whoever may have written for it has
    stopped itself by then. And again a lease later, until there is nothing in it but the job's checkpoints.
    """

    def __init__(
        self, database: db.Database, storage: Storage, lease_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._database, self._storage, self._lease_s, self._clock = database, storage, lease_s, clock
        self._due: dict[str, float] = {}
        self._last = ""

    def look(self) -> None:
        """One look at the jobs whose turn it is; as long as the storage takes, so it is to have a thread of its own.

        Raises:
            ServiceUnavailable: the database is away.
            StorageFailure: the storage is, or has failed with one job; the next look begins with the others.
        """
        now = self._clock()
        for job_id in self._uncollected():
            self._due.setdefault(job_id, now + self._lease_s)
        for job_id in sorted((job_id for job_id, due in self._due.items() if due <= now), key=self._due.__getitem__)[:AT_ONCE]:
            self._due[job_id] = self._clock() + self._lease_s
            if self._is_collected(job_id):
                del self._due[job_id]

    def _uncollected(self) -> list[str]:
        """The next of the jobs that may have left something."""
        id = tables.jobs.c.id
        query = sa.select(id).where(tables.UNCOLLECTED, id > self._last).order_by(id).limit(AT_ONCE)
        with self._database.transaction() as connection:
            found = list(connection.execute(query).scalars())
        self._last = found[-1] if len(found) == AT_ONCE else ""
        return found

    def _is_collected(self, job_id: str) -> bool:
        """Deletes what a job has left. Returns whether nobody has to look at it again."""
        mine = (tables.jobs.c.id == job_id, tables.jobs.c.status.in_(TERMINAL), tables.UNCOLLECTED)
        is_open = sa.select(tables.jobs.c.id).where(*mine)
        with self._database.transaction() as connection:
            if connection.execute(is_open).one_or_none() is None:
                return True
        written = self._storage.folders(job_folder(job_id))
        with self._database.transaction() as connection:
            # After the listing and before its checkpoints are read: an ended job gets no more of them.
            if connection.execute(is_open).one_or_none() is None:
                return True
            left = uncommitted(connection, job_id, written)
            if not left:
                connection.execute(sa.update(tables.jobs).where(*mine).values(collected=True))
            unneeded = left - promised(connection, left)
        for key in sorted(unneeded):
            self._storage.delete(key)
        return not left
