"""A supervisor with small programs in place of the training process."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae_service.jobs.database import Database
from sae_service.jobs.migration import migrate
from sae_service.jobs.presence import Presence
from sae_service.jobs.store import JobStore
from sae_service.settings import Settings
from sae_service.storage.objects import Storage
from workers.supervisor import Supervisor

SPEC: dict[str, Any] = {"queue": "default", "priority": 0, "metadata": {}, "saes": [], "checkpoints": {"keep": 2}}
READ_ASSIGNMENT = "import json, sys, time; sys.stdin.buffer.raw.readline()\n"


class Worker:
    """A supervisor with a job that waits for it."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(data_dir=folder, lease_s=2)
        self.database = Database(self.settings.resolved_database_url())
        migrate(self.database)
        Presence(self.database, "w1", "default", 1, self.settings.lease_s).renew()
        self.store = JobStore(self.database)
        self.job_id = self.store.submit(SPEC)[0].id
        self.supervisor = Supervisor(self.database, self.settings, "w1", None)
        self.storage = Storage(self.settings.resolved_storage_url())

    @property
    def status(self) -> str:
        return self.store.get(self.job_id).status

    def publish(self, step: int, is_final: bool = False) -> dict[str, Any]:
        key = f"jobs/{self.job_id}/step-{step}"
        files = self.storage.publish(key, {"saes/a/cfg.json": b"{}"})
        return {"key": key, "step": step, "tokens": step, "is_final": is_final, "files": files, "metrics": {}}


def saved(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What a training process says of a checkpoint that it has published."""
    return {"kind": "checkpoint", "seconds": 0.5, "checkpoint": checkpoint}


def eventually(condition: Callable[[], bool]) -> None:
    before = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < before
        time.sleep(0.05)


def says(*messages: dict[str, Any]) -> str:
    return READ_ASSIGNMENT + "\n".join(f"print({json.dumps(message)!r}, flush=True)" for message in messages)
