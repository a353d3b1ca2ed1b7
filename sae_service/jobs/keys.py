"""The keys of the API. The database holds their hashes; a key itself is known to its holder alone."""

import hashlib
import secrets
import time
from typing import Annotated, Literal, get_args

import sqlalchemy as sa
from pydantic import StringConstraints, ValidationError
from sqlalchemy.exc import IntegrityError

from sae_service.errors import Conflict, InvalidSpec, NotFound
from sae_service.jobs import tables
from sae_service.jobs.database import Database
from sae_service.jobs.migration import migrate
from sae_service.jobs.owner import DEFAULT_PROJECT
from sae_service.jobs.rows import DAY_S, new_id, now
from sae_service.schema import Frozen

PREFIX = "sae_"
BYTES = 32
Scope = Literal["read", "submit", "manage"]
"""read: look. submit: make jobs. manage: cancel, pause, resume and delete them."""
SCOPES: tuple[Scope, ...] = get_args(Scope)
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Key(Frozen):
    """A key, as it may be shown. Times are Unix seconds; a key that was revoked keeps its name."""

    name: Name
    scopes: tuple[Scope, ...]
    project: Name
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None

    @property
    def is_valid(self) -> bool:
        """Whether it opens anything now."""
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > time.time())


def made() -> str:
    """A new key."""
    return f"{PREFIX}{secrets.token_urlsafe(BYTES)}"


def hashed(key: str) -> str:
    """What is stored of a key: its SHA-256. It has 256 random bits, so nothing slower is needed."""
    return hashlib.sha256(key.encode()).hexdigest()


class Keys:
    """The keys in one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @staticmethod
    def at(url: str) -> "Keys":
        """The keys in a database, which is brought to this release's tables first."""
        database = Database(url)
        migrate(database)
        return Keys(database)

    @property
    def where(self) -> str:
        """The database's address, without its password."""
        return self._database.engine.url.render_as_string()

    def create(
        self, name: str, scopes: tuple[str, ...], project: str = DEFAULT_PROJECT, expires_days: int | None = None
    ) -> str:
        """Makes a key and returns it; it can never be shown again. Raises InvalidSpec, or Conflict for a name that was used."""
        created = now()
        values = {
            "name": name, "scopes": scopes, "project": project, "created_at": created,
            "expires_at": None if expires_days is None else created + expires_days * DAY_S,
        }  # fmt: skip
        try:
            row = Key.model_validate(values).model_dump()
        except ValidationError as error:
            field = error.errors()[0]
            allowed = ", ".join(SCOPES) if field["loc"][0] == "scopes" else "letters, digits, '.', '_' and '-', 64 at most"
            raise InvalidSpec(f"{field['input']!r} cannot be used", str(field["loc"][0]), f"Allowed: {allowed}.") from None
        key = made()
        try:
            with self._database.transaction() as connection:
                connection.execute(sa.insert(tables.keys).values(id=new_id("key"), hash=hashed(key), **row))
        except IntegrityError:
            raise Conflict(f"there is a key {name} already, or was one; names are not used twice") from None
        return key

    def all(self) -> list[Key]:
        """The keys, oldest first, with those that are revoked or expired."""
        return list(self.by_hash().values())

    def by_hash(self) -> dict[str, Key]:
        """The keys by what is stored of them."""
        table = tables.keys
        with self._database.transaction() as connection:
            rows = connection.execute(sa.select(table).order_by(table.c.id)).mappings().all()
        return {row["hash"]: Key.model_validate({name: row[name] for name in Key.model_fields}) for row in rows}

    def has_valid(self) -> bool:
        """Whether any of them opens anything now."""
        return any(key.is_valid for key in self.all())

    def revoke(self, name: str) -> None:
        """Makes a key worthless, within seconds. Raises NotFound."""
        table = tables.keys
        change = sa.update(table).where(table.c.name == name).values(revoked_at=sa.func.coalesce(table.c.revoked_at, now()))
        with self._database.transaction() as connection:
            if not connection.execute(change).rowcount:
                raise NotFound(f"there is no key {name}")
