"""Many processes start at once on a database that is still empty."""

import threading
import time

import pytest

from sae_service.jobs import migration
from sae_service.jobs.database import Database
from tests.postgres import Postgres


def test_a_process_that_waits_for_the_tables_does_not_hold_up_the_one_that_makes_them(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.url.replace("postgresql://", "postgresql+psycopg://")
    first, second = Database(url), Database(url)
    waiting = threading.Thread(target=migration.migrate, args=(second,), daemon=True)
    really = migration.queue.migrate

    def migrate(database: Database) -> None:
        if database is first:
            waiting.start()
            time.sleep(2)
        # Indexes that are built concurrently wait for every older snapshot, and a query that waits for a lock holds one.
        really(database)

    monkeypatch.setattr(migration.queue, "migrate", migrate)
    making = threading.Thread(target=migration.migrate, args=(first,), daemon=True)
    making.start()
    making.join(60)
    waiting.join(20)
    assert not making.is_alive()
    assert not waiting.is_alive()
