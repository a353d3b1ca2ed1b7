"""A database that is away, or whose answer is lost, so that what was asked is asked again."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest
import sqlalchemy as sa

from sae_service.errors import ServiceUnavailable
from sae_service.jobs import queue
from sae_service.jobs.database import Database
from sae_service.jobs.migration import migrate
from sae_service.jobs.store import JobStore
from tests.attempts import checkpoint, claimed, submitted


@contextmanager
def dying_connection(database: Database, has_committed: bool) -> Iterator[None]:
    """Lets a connection die as its transaction is committed, just before that or just after."""
    really = database.transaction

    @contextmanager
    def transaction() -> Iterator[sa.Connection]:
        with really() as connection:
            yield connection
            if not has_committed:
                raise ServiceUnavailable("the connection is gone")
        raise ServiceUnavailable("the connection is gone")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "transaction", transaction)
        with pytest.raises(ServiceUnavailable):
            yield


@pytest.mark.parametrize("has_committed", [True, False])
def test_a_message_that_is_repeated_because_it_was_not_answered_is_recorded_once(
    database: Database, store: JobStore, has_committed: bool
) -> None:
    attempt, text = claimed(database, store), "the log says \0"

    def messages() -> list[str]:
        return [event.message for event in store.events(attempt.job_id) if event.type == "message"]

    with dying_connection(database, has_committed):
        attempt.event("warning", text)
    store.cancel(attempt.job_id)
    attempt.event("warning", text)
    assert messages() == ["the log says "]
    attempt.event("warning", text)
    assert messages() == ["the log says "] * 2, "what is said again is recorded again"


def test_a_commit_whose_answer_was_lost_can_be_repeated(database: Database, store: JobStore) -> None:
    attempt = claimed(database, store)
    made = checkpoint(5) | {"key": f"{attempt.job_id}/5"}
    assert attempt.commit(made, keep=1) == []
    assert attempt.commit(made, keep=1) == [], "what is returned is deleted"
    assert [found.step for found in store.checkpoints(attempt.job_id)] == [5]


def test_a_commit_is_repeated_though_its_job_is_being_cancelled_meanwhile(database: Database, store: JobStore) -> None:
    attempt = claimed(database, store)
    made = checkpoint(5) | {"key": f"{attempt.job_id}/5"}
    assert attempt.commit(made, keep=1) == []
    store.cancel(attempt.job_id)
    assert attempt.commit(made, keep=1) == [], "what is returned is deleted"
    assert [found.step for found in store.checkpoints(attempt.job_id)] == [5]


def test_a_database_that_is_away_is_unavailable_and_not_a_bug() -> None:
    with pytest.raises(ServiceUnavailable, match="database"):
        JobStore(Database("postgresql+psycopg://nobody@127.0.0.1:1/nothing")).get("job_1")


def test_a_server_that_has_become_a_read_only_copy_is_away_and_is_left(postgres_url: str) -> None:
    name = f"failover_{uuid4().hex}"
    server = sa.create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    database = Database(sa.make_url(postgres_url).set(database=name).render_as_string(hide_password=False))
    migrate(database)
    store = JobStore(database)
    attempt = claimed(database, store)
    with server.connect() as connection:
        connection.execute(sa.text(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
    database.engine.dispose()
    for write in (attempt.renew, lambda: submitted(store), lambda: queue.Queue(database).drop(attempt.job_id, 1)):
        with pytest.raises(ServiceUnavailable, match="read-only"):
            write()
    assert store.get(attempt.job_id).status == "running"
    with server.connect() as connection:
        connection.execute(sa.text(f"ALTER DATABASE {name} RESET default_transaction_read_only"))
    with pytest.raises(ServiceUnavailable, match="read-only"):
        attempt.renew()
    assert attempt.renew() == "running", "by a new connection"
    database.engine.dispose()
    server.dispose()
