"""What an error of the database is taken for: an outage, which passes, or a refusal, which does not."""

import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from sae_service.errors import DatabaseFailure, SAEServiceError, ServiceUnavailable
from sae_service.jobs.database import Database


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database(f"sqlite:///{tmp_path / 'service.db'}")
    with database.transaction() as connection:
        connection.execute(sa.text("CREATE TABLE numbers (n INTEGER PRIMARY KEY, text TEXT)"))
    return database


@pytest.mark.parametrize(
    ("before", "statement", "kind", "said"),
    [
        ("PRAGMA busy_timeout = 0", "SELECT * FROM absent", DatabaseFailure, "refuses a statement: no such table: absent"),
        ("PRAGMA busy_timeout = 0", "SELEC 1", DatabaseFailure, "refuses a statement: .*syntax"),
        ("PRAGMA busy_timeout = 0", "SELECT nope FROM numbers", DatabaseFailure, "no such column"),
        ("PRAGMA max_page_count = 3", "INSERT INTO numbers VALUES (1, zeroblob(100000))", ServiceUnavailable, "disk is full"),
        ("PRAGMA query_only = ON", "INSERT INTO numbers VALUES (1, '')", ServiceUnavailable, "is read-only"),
    ],
)
def test_an_error_says_what_is_wrong_with_the_database(
    database: Database, before: str, statement: str, kind: type[SAEServiceError], said: str
) -> None:
    with database.engine.connect() as connection:
        connection.exec_driver_sql(before)
    with pytest.raises(kind, match=said), database.transaction() as connection:
        connection.exec_driver_sql(statement)


def test_a_database_that_another_process_has_locked_does_not_answer(database: Database, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "service.db", isolation_level=None)
    with database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout = 0")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(ServiceUnavailable, match="does not answer: database is locked"), database.transaction() as connection:
        connection.execute(sa.text("INSERT INTO numbers VALUES (1, '')"))
    other.close()


def test_a_row_that_breaks_a_constraint_is_the_callers_to_judge(database: Database) -> None:
    with pytest.raises(IntegrityError), database.transaction() as connection:
        connection.execute(sa.text("INSERT INTO numbers VALUES (1, ''), (1, '')"))


def test_a_file_that_is_no_database_is_no_outage(tmp_path: Path) -> None:
    (tmp_path / "service.db").write_bytes(b"no database" * 1000)
    with pytest.raises(DatabaseFailure, match="not a database"), Database(f"sqlite:///{tmp_path / 'service.db'}").transaction():
        pass
