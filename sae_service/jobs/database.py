"""One SQLite file or one PostgreSQL database, and transactions on it."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError, SQLAlchemyError, TimeoutError

from sae_service.errors import DatabaseFailure, ServiceUnavailable, StorageFailure

SQLITE = "sqlite:///"
SUBSECOND_CLOCK = (3, 42)
NETWORK_FILESYSTEMS = (
    "nfs", "cifs", "smb", "afs", "lustre", "gpfs", "beegfs", "panfs", "wekafs", "pvfs2", "ceph", "glusterfs", "mfs",
    "seaweedfs", "juicefs", "quobyte", "sshfs", "s3fs", "goofys", "gcsfuse", "blobfuse", "rclone",
)  # fmt: skip
"""How their types begin; FUSE puts `fuse.` before them, and has local ones too."""
# Without these, a connection that the other end has forgotten is waited on for two hours.
KEEPALIVES = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
TCP_USER_MS = 25_000
IDLE_MS = 60_000
"""A transaction that does not go on for so long is the server's to end: its worker may be gone, and a job waits for it."""
READ_ONLY = ("25006", "SQLITE_READONLY")
DISK_FULL = ("53100", "SQLITE_FULL")
# What a server says that is no longer there for us: it has become another's read-only copy, or has left a transaction.
NOT_OURS = ("25006", "25P03")
OF_THE_MOMENT = (
    "SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_PROTOCOL", "SQLITE_NOMEM", "SQLITE_INTERRUPT",
    *READ_ONLY, *DISK_FULL,
)  # fmt: skip
"""How the names of those of SQLite's errors begin that may pass; PostgreSQL's driver has a class for its own."""
KEPT, BURST = 5, 15
"""Connections to PostgreSQL that stay open, and those beside that are opened when they are needed and closed afterwards."""


class Database:
    """One connection pool, shared by the threads of a process."""

    def __init__(self, url: str, kept: int = KEPT, name: str = "sae-service") -> None:
        """Opens the database; nothing is connected yet.

        Args:
            kept: connections to PostgreSQL that stay open while nobody asks for anything.
            name: what the server calls them, where the URL does not say (`application_name`).

        Raises:
            StorageFailure: it is SQLite on a network filesystem.
        """
        self.url = url
        self.is_sqlite = url.startswith(SQLITE)
        if self.is_sqlite:
            folder = Path(url.removeprefix(SQLITE)).parent
            folder.mkdir(parents=True, exist_ok=True)
            refuse_network_filesystem(folder)
            self.engine = sa.create_engine(url)
            event.listen(self.engine, "connect", _prepare_sqlite)
        else:
            self.engine = sa.create_engine(
                url, pool_pre_ping=True, pool_size=kept, max_overflow=BURST, connect_args=_connect_arguments(url, name)
            )
            event.listen(self.engine, "handle_error", _leave_server)

    @property
    def clock(self) -> sa.ColumnElement[int]:
        """The database's own time, in Unix seconds."""
        if self.is_sqlite:
            return sa.cast(sa.func.strftime("%s", "now"), sa.BigInteger)
        return sa.cast(sa.func.floor(sa.extract("epoch", sa.func.clock_timestamp())), sa.BigInteger)

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """A transaction, committed at the end of the block. Raises ServiceUnavailable or DatabaseFailure."""
        with reached(), self.engine.begin() as connection:
            yield connection


@contextmanager
def reached() -> Iterator[None]:
    """Raises ServiceUnavailable if the database is away, full or read-only, which passes, and DatabaseFailure if it refuses
    what is asked of it, which will be no different the next time. A row that breaks a constraint stays an IntegrityError.
    """
    try:
        yield
    except IntegrityError:
        raise
    except (DBAPIError, TimeoutError) as error:
        if not _is_of_the_moment(error):
            raise DatabaseFailure(f"the database refuses a statement: {_reason(error)}") from error
        raise ServiceUnavailable(f"{_trouble(error)}: {_reason(error)}") from error


def _is_of_the_moment(error: DBAPIError | TimeoutError) -> bool:
    if isinstance(error, TimeoutError | InterfaceError) or error.connection_invalidated:
        return True
    name = getattr(error.orig, "sqlite_errorname", None)
    return isinstance(error, OperationalError) and (name is None or name.startswith(OF_THE_MOMENT))


def _trouble(error: SQLAlchemyError) -> str:
    if _code(error).startswith(READ_ONLY):
        return "the database is read-only"
    return "the database's disk is full" if _code(error).startswith(DISK_FULL) else "the database does not answer"


def _code(error: SQLAlchemyError) -> str:
    """What the database calls its error: PostgreSQL's five characters, SQLite's name, or nothing."""
    cause = getattr(error, "orig", None)
    return getattr(cause, "sqlite_errorname", None) or getattr(cause, "sqlstate", None) or ""


def refuse_network_filesystem(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> None:
    """Raises StorageFailure for a folder on a network filesystem, whose locks SQLite cannot rely on."""
    if not mounts.exists():
        return
    fields = (line.split() for line in mounts.read_text().splitlines())
    kinds = {Path(point.replace("\\040", " ")): kind for _, point, kind, *_ in fields}
    parents = [folder.resolve(), *folder.resolve().parents]
    kind = next((kinds[parent] for parent in parents if parent in kinds), "")
    if kind.removeprefix("fuse.").startswith(NETWORK_FILESYSTEMS):
        raise StorageFailure(
            f"{folder} is on a network filesystem ({kind}), where SQLite can lose data.",
            hint="Choose a local --data-dir, or set SAE_SERVICE_DATABASE_URL to a PostgreSQL database.",
        )


def _connect_arguments(url: str, name: str) -> dict[str, Any]:
    """What the connections have that the URL does not say otherwise."""
    given = sa.make_url(url).query
    # The server looks after its end as we after ours: a worker whose host is gone must not keep a job's row.
    theirs = {f"tcp_{name}": value for name, value in KEEPALIVES.items()} | {"tcp_user_timeout": TCP_USER_MS}
    session = theirs | {"idle_in_transaction_session_timeout": IDLE_MS}
    options = [f"-c {name}={value}" for name, value in session.items()]
    ours = {"connect_timeout": 5, "application_name": name, **KEEPALIVES, "tcp_user_timeout": TCP_USER_MS}
    ours = {name: value for name, value in ours.items() if name not in given}
    return ours | {"options": " ".join([*options, str(given.get("options", ""))])}


def _prepare_sqlite(connection: Any, _: Any) -> None:
    # A writer takes its lock when its transaction begins, so that it never has to give up half-way.
    connection.isolation_level = "IMMEDIATE"
    if sqlite3.sqlite_version_info < SUBSECOND_CLOCK:
        # DBOS dates its rows by unixepoch('subsec'), which is NULL in an older SQLite.
        connection.create_function("unixepoch", -1, _unix_time)
    for pragma in ("busy_timeout=30000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _leave_server(context: sa.engine.ExceptionContext) -> None:
    # Counted as a connection that is gone, all of them are made anew: they may lead to the server that has taken over.
    if getattr(context.original_exception, "sqlstate", None) in NOT_OURS:
        context.is_disconnect = True


def _unix_time(*modifiers: str) -> float:
    return time.time() if "subsec" in modifiers else int(time.time())


def _reason(error: SQLAlchemyError) -> str:
    return str(getattr(error, "orig", None) or error).strip().split("\n")[0]
