"""Which workers are there: each says so several times a lease, by the database's clock."""

import sqlalchemy as sa

from sae_service.errors import StorageFailure
from sae_service.jobs import database as db
from sae_service.jobs import tables
from sae_service.jobs.records import ACTIVE, Worker

FORGOTTEN_AFTER = 20
"""Leases after which a silent worker's row is deleted."""


class Presence:
    """One worker's row. Its name begins with its host's and a colon."""

    def __init__(self, database: db.Database, name: str, queue: str, gpus: int, lease_s: float) -> None:
        self._database, self._name, self._lease_s = database, name, lease_s
        self._values = {"name": name, "queue": queue, "gpus": gpus}

    def renew(self) -> None:
        """Says that the worker is there, and forgets those that have long been silent.

        Raises:
            ServiceUnavailable: the database does not answer.
            StorageFailure: it is a SQLite file, and workers of another host use it.
        """
        table, clock = tables.workers, self._database.clock
        with self._database.transaction() as connection:
            seen = sa.update(table).where(table.c.name == self._name).values(seen_at=clock)
            if not connection.execute(seen).rowcount:
                self._refuse_other_hosts(connection)
                connection.execute(sa.insert(table).values(**self._values, started_at=clock, seen_at=clock))
            # Not those that another worker is about to delete: if it vanishes just then, nobody is to wait for it.
            silent = sa.select(table.c.name).where(table.c.seen_at < clock - round(FORGOTTEN_AFTER * self._lease_s))
            connection.execute(sa.delete(table).where(table.c.name.in_(silent.with_for_update(skip_locked=True))))

    def _refuse_other_hosts(self, connection: sa.Connection) -> None:
        if not self._database.is_sqlite:
            return
        names = connection.execute(sa.select(tables.workers.c.name).where(is_present(self._database, self._lease_s))).scalars()
        others = {name.split(":")[0] for name in names} - {self._name.split(":")[0]}
        if others:
            raise StorageFailure(
                f"the database is a SQLite file, and workers on {min(others)} use it too: its locks hold on one host only.",
                hint="Set SAE_SERVICE_DATABASE_URL to a PostgreSQL database.",
            )

    def leave(self) -> None:
        """Takes the row away. Raises ServiceUnavailable."""
        with self._database.transaction() as connection:
            connection.execute(sa.delete(tables.workers).where(tables.workers.c.name == self._name))


def is_present(database: db.Database, lease_s: float) -> sa.ColumnElement[bool]:
    """The condition that a worker has been seen within a lease."""
    return tables.workers.c.seen_at >= database.clock - max(1, round(lease_s))


def workers(database: db.Database, lease_s: float, may_see: sa.ColumnElement[bool]) -> list[Worker]:
    """The workers that are there, by name, with the jobs that may be seen."""
    query = sa.select(tables.workers).where(is_present(database, lease_s)).order_by(tables.workers.c.name)
    works_on = (tables.jobs.c.worker == tables.workers.c.name, tables.jobs.c.status.in_(ACTIVE), may_see)
    job = sa.select(tables.jobs.c.id).where(*works_on)
    with database.transaction() as connection:
        rows = connection.execute(query.add_columns(job.limit(1).correlate(tables.workers).scalar_subquery().label("job_id")))
        return [Worker(**row._mapping) for row in rows]
