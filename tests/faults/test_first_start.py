"""Many processes start at once on a database that is still empty."""

import threading
import time

from sae_service.jobs import queue
from sae_service.jobs.database import Database
from tests.postgres import Postgres


def test_a_process_that_waits_for_the_tables_does_not_hold_up_the_one_that_makes_them(postgres: Postgres) -> None:
    url = postgres.url.replace("postgresql://", "postgresql+psycopg://")
    first, second = Database(url), Database(url)
    waiting = threading.Thread(target=second.migrate, args=(lambda: None,), daemon=True)

    def migrate() -> None:
        waiting.start()
        time.sleep(2)
        # Indexes that are built concurrently wait for every older snapshot, and a query that waits for a lock holds one.
        queue.migrate(first)

    making = threading.Thread(target=first.migrate, args=(migrate,), daemon=True)
    making.start()
    making.join(60)
    waiting.join(10)
    assert not making.is_alive()
    assert not waiting.is_alive()
