"""Brings a database to the tables of this release, or says that it is another release's."""

import fcntl
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from sae_service.errors import WrongVersion
from sae_service.jobs import queue
from sae_service.jobs.database import SQLITE, Database, reached

log = logging.getLogger("migration")
FOLDER = Path(__file__).parent / "migrations"
FIRST, LAST = "0001", "0006"
LOCK = 5_270_041
PAUSE_S = 0.2


def migrate(database: Database) -> None:
    """Applies the changes that are missing, one process at a time. Raises WrongVersion or ServiceUnavailable."""
    with reached(), _alone(database):
        _upgrade(database)
        queue.migrate(database)


def check(database: Database) -> None:
    """Raises WrongVersion if a newer release has changed the tables since this process began."""
    found = _revision(database)
    if found is not None and found > LAST:
        raise WrongVersion(
            f"the database is at revision {found}, and this release knows none after {LAST}.",
            hint="Install the release that the rest of the service runs.",
        )


def is_current(database: Database) -> bool:
    """Whether no newer release has changed the tables. If one has, the log says so. Raises ServiceUnavailable."""
    try:
        check(database)
    except WrongVersion as error:
        log.error("%s", error)
        return False
    return True


def _upgrade(database: Database) -> None:
    from alembic import command
    from alembic.config import Config

    check(database)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    is_unnumbered = _revision(database) is None and sa.inspect(database.engine).has_table("jobs")
    with database.engine.begin() as connection:
        if database.is_sqlite:
            # Python's driver begins a transaction at the first row that is written, which is too late for tables: a
            # process that is killed between two of them would leave half a revision behind.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        config.attributes["connection"] = connection
        if is_unnumbered:
            command.stamp(config, FIRST)
        command.upgrade(config, LAST)


def _revision(database: Database) -> str | None:
    with database.transaction() as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


@contextmanager
def _alone(database: Database) -> Iterator[None]:
    if database.is_sqlite:
        with Path(database.url.removeprefix(SQLITE) + ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    else:
        # No transaction may stay open meanwhile: indexes that are built concurrently would wait for its end.
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            # Asked for again and again: a query that waits would count as a transaction too.
            while not connection.execute(sa.select(sa.func.pg_try_advisory_lock(LOCK))).scalar_one():
                time.sleep(PAUSE_S)
            try:
                yield
            finally:
                connection.execute(sa.select(sa.func.pg_advisory_unlock(LOCK)))
