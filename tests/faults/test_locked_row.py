"""A lock on SQLite stops every worker's signs of life, while reading goes on."""

import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

from sae_service.jobs.attempts import Attempt
from sae_service.jobs.database import Database
from sae_service.jobs.lost_attempts import LostAttempts
from sae_service.jobs.migration import migrate
from sae_service.jobs.store import JobStore

SPEC: dict[str, Any] = {"queue": "default", "priority": 0, "metadata": {}, "saes": []}


def test_while_writes_are_held_up_nobody_is_declared_dead(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'service.db'}")
    migrate(database)
    store = JobStore(database)
    job = store.submit(SPEC)[0]
    assert Attempt(database, job.id, 1).claim("worker") is not None
    now = [0.0]
    lost_attempts = LostAttempts(database, lease_s=6, clock=lambda: now[0])
    for now[0] in (0, 2, 4):
        lost_attempts.look()
    other = sqlite3.connect(tmp_path / "service.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    now[0] = 6
    looking = threading.Thread(target=lost_attempts.look)
    looking.start()
    time.sleep(0.5)
    now[0] = 10
    other.execute("ROLLBACK")
    looking.join()
    other.close()
    assert store.get(job.id).attempt == 1
