"""Figures of the whole service, from few rows: none of them reads a job that has ended."""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from sae_service.jobs import tables
from sae_service.jobs.database import Database
from sae_service.jobs.presence import is_present
from sae_service.jobs.records import ACTIVE
from sae_service.jobs.rows import now

LIVING = ("queued", "paused", *ACTIVE)


@dataclass(frozen=True)
class Census:
    """What there is now: jobs by status, the age of the oldest queued one, workers by queue, rows trained on in a second."""

    jobs: dict[str, int]
    oldest_queued_s: int
    workers: dict[str, int]
    tokens_per_s: float


def census(database: Database, lease_s: float) -> Census:
    """Counts, by indexes alone. Raises ServiceUnavailable."""
    columns, workers = tables.jobs.c, tables.workers
    # An id begins with the time of its making.
    oldest = sa.select(columns.created_at).where(columns.status == "queued").order_by(columns.id).limit(1)
    present = sa.select(workers.c.queue, sa.func.count()).where(is_present(database, lease_s)).group_by(workers.c.queue)
    speeds = sa.select(columns.progress["tokens_per_s"].as_float()).where(columns.status.in_(ACTIVE))
    with database.transaction() as connection:
        counted = _pairs(connection, by_status())
        since = connection.execute(oldest).scalar_one_or_none()
        return Census(
            jobs={status: counted.get(status, 0) for status in LIVING},
            oldest_queued_s=0 if since is None else max(0, now() - since),
            workers=_pairs(connection, present),
            tokens_per_s=sum(speed or 0.0 for speed in connection.execute(speeds).scalars()),
        )


def by_status() -> sa.Executable:
    """The number of jobs in each state but those that are never left."""
    status = tables.jobs.c.status
    return sa.select(status, sa.func.count()).where(status.in_(LIVING)).group_by(status)


def _pairs(connection: sa.Connection, query: sa.Executable) -> dict[str, int]:
    found: sa.Result[Any] = connection.execute(query)
    return {str(name): count for name, count in found}
