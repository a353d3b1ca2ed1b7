"""Transactions that do not go on, on PostgreSQL: they hold a job's row, and nobody else may wait for long."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from sae_service.errors import ServiceUnavailable
from sae_service.jobs import database as database_module
from sae_service.jobs import tables
from sae_service.jobs.attempts import Attempt
from sae_service.jobs.database import Database
from sae_service.jobs.lost_attempts import LostAttempts
from sae_service.jobs.migration import migrate
from sae_service.jobs.presence import Presence
from sae_service.jobs.store import JobStore
from tests.attempts import claimed
from tests.faults.proxy import Proxy

IDLE_MS = 2000
STATEMENTS = ["UPDATE jobs SET heartbeat", "DELETE FROM metrics", "INSERT INTO metrics", "UPDATE jobs SET progress"]


@pytest.fixture
def near(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """The database from next to it, with little patience for transactions that do not go on."""
    monkeypatch.setattr(database_module, "IDLE_MS", IDLE_MS)
    database = Database(postgres_url)
    migrate(database)
    yield database
    database.engine.dispose()


@pytest.fixture
def store(near: Database) -> JobStore:
    return JobStore(near)


@pytest.mark.parametrize("statement", STATEMENTS)
def test_a_worker_that_vanishes_within_a_transaction_does_not_keep_its_job(near: Database, store: JobStore, statement: str) -> None:
    url = sa.make_url(near.url)
    proxy = Proxy(url.port or 5432)
    far = Database(url.set(port=proxy.port).render_as_string(hide_password=False))
    attempt = claimed(near, store)

    gone = threading.Event()

    def vanish(_: Any, cursor: Any, sent: str, *__: Any) -> None:
        if sent.startswith(statement):
            # It was answered; what follows gets lost.
            proxy.silence()
            gone.set()

    event.listen(far.engine, "after_cursor_execute", vanish)
    rows = [{"sae": name, "step": 10} for name in ("a", "b")]

    def report() -> None:
        with suppress(ServiceUnavailable):
            Attempt(far, attempt.job_id, 1).metrics(rows, {"step": 10})

    threading.Thread(target=report, daemon=True).start()
    try:
        assert gone.wait(20)
        assert freed(near, attempt.job_id, within_ms=5 * IDLE_MS)
    finally:
        proxy.close()


def freed(database: Database, job_id: str, within_ms: int) -> bool:
    """Whether a job's row can be had in so long."""
    with database.engine.begin() as connection:
        connection.execute(sa.text(f"SET LOCAL lock_timeout = {within_ms}"))
        try:
            connection.execute(sa.select(tables.jobs.c.id).where(tables.jobs.c.id == job_id).with_for_update())
        except OperationalError:
            return False
    return True


def test_a_lost_job_whose_row_is_held_does_not_hold_up_the_others(near: Database, store: JobStore) -> None:
    held, other = claimed(near, store), claimed(near, store)
    now = [0.0]
    lost_attempts = LostAttempts(near, lease_s=60, clock=lambda: now[0])
    with sa.create_engine(near.url).begin() as holder:
        holder.execute(sa.select(tables.jobs.c.id).where(tables.jobs.c.id == held.job_id).with_for_update())
        for now[0] in (0, 20, 40, 60):
            lost_attempts.look()
        assert [store.get(attempt.job_id).status for attempt in (held, other)] == ["running", "queued"]
    now[0] = 70
    lost_attempts.look()
    assert store.get(held.job_id).status == "queued"


def test_a_silent_worker_whose_row_is_held_holds_up_nobody(near: Database) -> None:
    gone = {"name": "gone:1", "queue": "default", "gpus": 1, "started_at": 0, "seen_at": 0}
    with near.engine.begin() as connection:
        connection.execute(sa.insert(tables.workers).values(gone))
    impatient = Database(f"{near.url}?options=-c%20lock_timeout%3D1000")
    with sa.create_engine(near.url).begin() as holder:
        holder.execute(sa.select(tables.workers).where(tables.workers.c.name == gone["name"]).with_for_update())
        Presence(impatient, "here:1", "default", 1, lease_s=60).renew()
        assert {"gone:1", "here:1"} <= names(near)
    Presence(impatient, "here:1", "default", 1, lease_s=60).renew()
    assert "gone:1" not in names(near)


def names(database: Database) -> set[str]:
    with database.engine.begin() as connection:
        return set(connection.execute(sa.select(tables.workers.c.name)).scalars())


def test_what_a_url_says_of_a_connection_counts_beside_our_own(near: Database) -> None:
    database = Database(f"{near.url}?options=-c%20lock_timeout%3D1234&connect_timeout=7")
    with database.engine.begin() as connection:
        said = [connection.execute(sa.text(f"SHOW {name}")).scalar_one() for name in ("lock_timeout", "tcp_keepalives_idle")]
    assert said == ["1234ms", "10"]
