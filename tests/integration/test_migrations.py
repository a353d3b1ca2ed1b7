"""The tables of the service are made, brought up to date, or left alone, on SQLite and on PostgreSQL."""

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from sae_service.errors import WrongVersion
from sae_service.jobs import migration, tables
from sae_service.jobs.database import Database
from sae_service.jobs.store import JobStore


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    if request.param == "sqlite":
        return Database(f"sqlite:///{tmp_path}/empty.sqlite")
    url, name = request.getfixturevalue("postgres_url"), f"empty_{uuid4().hex}"
    with sa.create_engine(url, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    return Database(sa.make_url(url).set(database=name).render_as_string(hide_password=False))


def test_the_migrations_make_the_tables_that_the_code_expects(empty: Database) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    migration.migrate(empty)
    migration.migrate(empty)
    with empty.engine.connect() as connection:
        ours = set(tables.schema.tables)
        options = {"include_name": lambda name, kind, _: kind != "table" or name in ours}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), tables.schema) == []


@pytest.mark.parametrize("table", ["events", "workers"])
def test_a_process_that_ends_between_two_tables_leaves_none_behind(
    empty: Database, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alembic import op

    really = op.create_table

    def ends(name: str, *arguments: Any, **options: Any) -> Any:
        if name == table:
            raise KeyboardInterrupt
        return really(name, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(op, "create_table", ends)
        with pytest.raises(KeyboardInterrupt):
            migration.migrate(empty)
    assert not set(tables.schema.tables) & set(sa.inspect(empty.engine).get_table_names())
    migration.migrate(empty)
    assert set(tables.schema.tables) < set(sa.inspect(empty.engine).get_table_names())


def test_tables_from_before_revisions_were_counted_are_brought_up_to_date(empty: Database) -> None:
    migration.migrate(empty)
    sae = {"name": "a", "hook_name": "hook_embed", "architecture": {"kind": "topk", "d_sae": 64, "k": 8}}
    stream = {"model": {"name": "gpt2"}, "dataset": {"path": "some/text"}, "tokens": 1 << 20}
    spec = {"queue": "default", "priority": 0, "metadata": {"team": "a"}, "stream": stream, "saes": [sae], "gpus": 2}
    before = JobStore(empty).summary(JobStore(empty).submit(spec)[0].id)
    with empty.transaction() as connection:
        for table in ("workers", "labels", "keys", "explanations"):
            connection.execute(sa.text(f"DROP TABLE {table}"))
        for index in ("origin_key", "uncollected", "origin_job_id", "project", "project_status", "status", "finished"):
            connection.execute(sa.text(f"DROP INDEX ix_jobs_{index}"))
        connection.execute(sa.text("CREATE INDEX ix_jobs_status ON jobs (status)"))
        connection.execute(sa.text("DROP INDEX ix_metrics_sae"))
        if not empty.is_sqlite:
            connection.execute(sa.text("ALTER TABLE metrics RENAME CONSTRAINT metrics_by_step TO metrics_pkey"))
        for column in ("origin", "origin_key", "origin_job_id", "collected", "summary", "project", "submitter", "trace"):
            connection.execute(sa.text(f"ALTER TABLE jobs DROP COLUMN {column}"))
        connection.execute(sa.text("ALTER TABLE checkpoints DROP COLUMN score"))
        connection.execute(sa.text("DROP TABLE alembic_version"))
    migration.migrate(empty)
    with empty.transaction() as connection:
        assert connection.execute(sa.select(tables.checkpoints.c.score)).all() == []
        assert connection.execute(sa.select(tables.jobs.c.origin, tables.jobs.c.collected)).all() == [(None, False)]
        assert connection.execute(sa.select(tables.workers)).all() == []
    assert JobStore(empty).find(10, metadata={"team": "a"}) == [before]
    assert (before.summary.model, before.summary.gpus, before.summary.saes[0].d_sae) == ("gpt2", 2, 64)


def test_the_tables_of_a_newer_release_are_left_alone_and_said_to_be_so(empty: Database) -> None:
    migration.migrate(empty)
    with empty.transaction() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(WrongVersion):
        migration.check(empty)
    with pytest.raises(WrongVersion):
        migration.migrate(empty)
