"""Which workers are there: each says so several times a lease, by the database's clock."""

import sqlalchemy as sa

from sae_service.jobs import database as db
from sae_service.jobs.records import ACTIVE, Worker

FORGOTTEN_AFTER = 20
"""Leases after which a silent worker's row is deleted."""


class Presence:
    """One worker's row."""

    def __init__(self, database: db.Database, name: str, queue: str, gpus: int, lease_s: float) -> None:
        self._database, self._name, self._lease_s = database, name, lease_s
        self._values = {"name": name, "queue": queue, "gpus": gpus}

    def renew(self) -> None:
        """Says that the worker is there, and forgets those that have long been silent. Raises ServiceUnavailable."""
        table, clock = db.workers, self._database.clock
        with self._database.transaction() as connection:
            seen = sa.update(table).where(table.c.name == self._name).values(seen_at=clock)
            if not connection.execute(seen).rowcount:
                connection.execute(sa.insert(table).values(**self._values, started_at=clock, seen_at=clock))
            silent = table.c.seen_at < clock - round(FORGOTTEN_AFTER * self._lease_s)
            connection.execute(sa.delete(table).where(silent))

    def leave(self) -> None:
        """Takes the row away. Raises ServiceUnavailable."""
        with self._database.transaction() as connection:
            connection.execute(sa.delete(db.workers).where(db.workers.c.name == self._name))


def is_present(database: db.Database, lease_s: float) -> sa.ColumnElement[bool]:
    """The condition that a worker has been seen within a lease."""
    return db.workers.c.seen_at >= database.clock - max(1, round(lease_s))


def workers(database: db.Database, lease_s: float) -> list[Worker]:
    """The workers that are there, by name."""
    query = sa.select(db.workers).where(is_present(database, lease_s)).order_by(db.workers.c.name)
    job = sa.select(db.jobs.c.id).where(db.jobs.c.worker == db.workers.c.name, db.jobs.c.status.in_(ACTIVE))
    with database.transaction() as connection:
        rows = connection.execute(query.add_columns(job.limit(1).correlate(db.workers).scalar_subquery().label("job_id")))
        return [Worker(**row._mapping) for row in rows]
