"""Deletes jobs that ended long ago, where the settings say for how long they are kept."""

import logging
from contextlib import suppress

import sqlalchemy as sa

from sae_service.errors import Conflict, NotFound, StorageFailure
from sae_service.jobs import database as db
from sae_service.jobs import tables
from sae_service.jobs.records import TERMINAL
from sae_service.jobs.rows import DAY_S, now
from sae_service.jobs.store import JobStore
from sae_service.storage.job_folders import job_folder
from sae_service.storage.objects import Storage

log = logging.getLogger("retention")
AT_ONCE = 20
"""Jobs in one look."""


class Retention:
    """Deletes jobs as their users would, with all that is known of them and their files, once they have ended for so long.

    One with whose checkpoint another job has yet to begin, or to go on, stays until that one has ended too.
    """

    def __init__(self, database: db.Database, storage: Storage, keep_days: float | None) -> None:
        self._database, self._storage, self._keep_days = database, storage, keep_days
        self._store = JobStore(database)
        self._failed = set[str]()

    def look(self) -> None:
        """Deletes the next jobs whose time is over. What cannot be deleted is tried again. Raises ServiceUnavailable."""
        if self._keep_days is None:
            return
        for job_id in self._over(now() - round(self._keep_days * DAY_S)):
            try:
                with suppress(NotFound, Conflict):
                    self._store.delete(job_id, lambda job_id=job_id: self._storage.delete(job_folder(job_id)))
            except StorageFailure as error:
                log.warning("cannot delete job %s: %s", job_id, error)
                self._failed.add(job_id)

    def _over(self, before: int) -> list[str]:
        columns, heirs = tables.jobs.c, tables.jobs.alias()
        needed = sa.select(heirs.c.id).where(heirs.c.origin_job_id == columns.id, heirs.c.status.not_in(TERMINAL))
        over = (columns.finished_at < before, columns.status.in_(TERMINAL), ~needed.exists())
        query = sa.select(columns.id).where(*over).order_by(columns.finished_at).limit(AT_ONCE)
        with self._database.transaction() as connection:
            # Those whose turn has come in vain are tried again once it has come to all others.
            found = list(connection.execute(query.where(columns.id.not_in(self._failed))).scalars())
            if not found:
                self._failed.clear()
                found = list(connection.execute(query).scalars())
        return found
