"""What people and programs say that the latents of an SAE are about: one explanation by each author."""

from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from sae_service.jobs import database as db
from sae_service.jobs import tables
from sae_service.jobs.records import Explanation
from sae_service.jobs.rows import now, storable

AT_ONCE = 200
"""Rows in one statement."""
ESCAPE = "\\"


class Explanations:
    """Those of all SAEs of one database. An SAE is that of a name in a job."""

    def __init__(self, database: db.Database) -> None:
        self._database = database

    def put(self, job_id: str, sae: str, found: Sequence[Explanation]) -> None:
        """Stores explanations, all or none; each takes the place of the one by the same author of the same latent."""
        table, given = tables.explanations, {(one.latent, storable(one.author)): one for one in found}
        rows = [
            {"job_id": job_id, "sae": sae, "latent": latent, "author": author, "text": storable(one.text), "score": one.score}
            for (latent, author), one in given.items()
        ]
        key = sa.tuple_(table.c.latent, table.c.author)
        with self._database.transaction() as connection:
            for first in range(0, len(rows), AT_ONCE):
                part = rows[first : first + AT_ONCE]
                here = (table.c.job_id == job_id, table.c.sae == sae, key.in_([(row["latent"], row["author"]) for row in part]))
                connection.execute(sa.delete(table).where(*here))
                connection.execute(sa.insert(table).values([row | {"created_at": now()} for row in part]))

    def of(self, job_id: str, sae: str, latents: Iterable[int]) -> dict[int, list[Explanation]]:
        """The explanations of some latents, of each the one with the highest score first, and then the newest."""
        table = tables.explanations
        here = (table.c.job_id == job_id, table.c.sae == sae, table.c.latent.in_(list(latents)))
        order = (table.c.score.is_(None), table.c.score.desc(), table.c.created_at.desc(), table.c.author)
        with self._database.transaction() as connection:
            rows = connection.execute(sa.select(table).where(*here).order_by(*order)).mappings().all()
        found: dict[int, list[Explanation]] = {}
        for row in rows:
            found.setdefault(row["latent"], []).append(_record(row))
        return found

    def matching(self, job_id: str, sae: str, words: str) -> list[int]:
        """The latents that have an explanation with these words in it, in upper or lower case."""
        table = tables.explanations
        escaped = words.replace(ESCAPE, ESCAPE * 2).replace("%", f"{ESCAPE}%").replace("_", f"{ESCAPE}_").lower()
        holds = sa.func.lower(table.c.text).like(f"%{storable(escaped)}%", escape=ESCAPE)
        query = sa.select(table.c.latent).distinct().where(table.c.job_id == job_id, table.c.sae == sae, holds)
        with self._database.transaction() as connection:
            return list(connection.execute(query).scalars())


def _record(row: Any) -> Explanation:
    return Explanation.model_validate({name: row[name] for name in Explanation.model_fields})
