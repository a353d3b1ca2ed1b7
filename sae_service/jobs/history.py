"""What has happened to one job: its events, its metrics and its checkpoints."""

import sqlalchemy as sa

from sae_service.errors import NotFound
from sae_service.jobs import database as db
from sae_service.jobs import tables
from sae_service.jobs.records import Checkpoint, Event, MetricsRow
from sae_service.jobs.rows import best_step, to_checkpoint


class History:
    """What the jobs of one database leave behind."""

    def __init__(self, database: db.Database) -> None:
        self._database = database

    def events(self, job_id: str, after: int = 0, limit: int = 100) -> list[Event]:
        """Up to `limit` events behind the event `after`, oldest first."""
        table = tables.events
        query = sa.select(table).where(table.c.job_id == job_id, table.c.seq > after).order_by(table.c.seq).limit(limit)
        with self._database.transaction() as connection:
            rows = connection.execute(query).mappings().all()
        return [Event.model_validate({"id": row["seq"]} | {k: row[k] for k in row if k not in ("seq", "job_id")}) for row in rows]

    def metrics(
        self, job_id: str, sae: str | None = None, after: tuple[int, str] | None = None, after_step: int = 0, limit: int = 1000
    ) -> list[MetricsRow]:
        """Up to `limit` rows of training metrics by step and SAE, of steps behind `after_step`, and behind the row of the step
        and the SAE `after`.
        """
        table = tables.metrics
        query = sa.select(table.c.step, table.c.sae, table.c.data).where(table.c.job_id == job_id, table.c.step > after_step)
        if after is not None:
            # As a BigInteger: a step that no job reaches is behind all rows, not an error.
            row = sa.tuple_(sa.literal(after[0], sa.BigInteger), sa.literal(after[1]))
            query = query.where(sa.tuple_(table.c.step, table.c.sae) > row)
        if sae is not None:
            query = query.where(table.c.sae == sae)
        with self._database.transaction() as connection:
            rows = connection.execute(query.order_by(table.c.step, table.c.sae).limit(limit)).all()
        return [MetricsRow(sae=row.sae, step=row.step, data=row.data) for row in rows]

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """The committed checkpoints that are kept, newest first."""
        table = tables.checkpoints
        query = sa.select(table).where(table.c.job_id == job_id).order_by(table.c.step.desc())
        with self._database.transaction() as connection:
            rows = connection.execute(query).all()
            best = best_step(connection, job_id)
        return [to_checkpoint(row, is_latest=row is rows[0], is_best=row.step == best) for row in rows]

    def checkpoint(self, job_id: str, checkpoint_id: str) -> Checkpoint:
        """One checkpoint of a job, by its id or one of its names. Raises NotFound."""
        listed = self.checkpoints(job_id)
        for found in listed:
            if checkpoint_id in (found.id, *found.names):
                return found
        raise NotFound(f"job {job_id} {_lacks(checkpoint_id, bool(listed))}")


def _lacks(checkpoint_id: str, has_others: bool) -> str:
    if checkpoint_id not in ("latest", "best"):
        return f"has no checkpoint {checkpoint_id!r}; name one by its id, or as latest or best"
    return "has no best checkpoint yet: none has been measured on held-out text" if has_others else "has no checkpoint yet"
