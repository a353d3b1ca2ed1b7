"""A worker that has no job, beside jobs that have left files behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from sae_service.jobs.database import Database
from sae_service.jobs.migration import migrate
from sae_service.jobs.store import JobStore
from sae_service.settings import Settings
from sae_service.storage.objects import Storage
from tests.attempts import submitted


@pytest.fixture
def idle(tmp_path: Path) -> tuple[Settings, JobStore]:
    """A service of which no process runs; its only job is cancelled."""
    settings = Settings(data_dir=tmp_path, lease_s=1)
    database = Database(settings.resolved_database_url())
    migrate(database)
    store = JobStore(database, settings.lease_s)
    store.cancel(submitted(store).id)
    return settings, store


def while_a_worker_runs(folder: Path, until: Callable[[], object], **settings: str) -> float:
    """Stops it as soon as the condition holds. Returns how long the stop took, in seconds."""
    environment = os.environ | {"SAE_SERVICE_DATA_DIR": str(folder), "SAE_SERVICE_LEASE_S": "1"} | settings
    worker = subprocess.Popen([sys.executable, "-m", "workers"], env=environment)
    try:
        before = time.monotonic() + 120
        while not until():
            assert time.monotonic() < before
            assert worker.poll() is None
            time.sleep(0.1)
        began = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0
        return time.monotonic() - began
    finally:
        worker.kill()
        worker.wait()


def test_a_worker_without_a_job_deletes_what_others_have_left(idle: tuple[Settings, JobStore]) -> None:
    settings, store = idle
    (job,), storage = store.find(1), Storage(settings.resolved_storage_url())
    storage.put(f"jobs/{job.id}/step-3/saes/a/cfg.json", b"{}")
    while_a_worker_runs(settings.data_dir, lambda: not storage.folders(f"jobs/{job.id}"))


def test_a_storage_that_does_not_answer_holds_up_neither_the_signs_of_life_nor_the_stop_of_a_worker(
    idle: tuple[Settings, JobStore]
) -> None:
    settings, store = idle
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        asked: list[tuple[socket.socket, float]] = []

        def is_there_while_it_waits() -> bool:
            if not asked:
                with suppress(BlockingIOError):
                    asked.append((silent.accept()[0], time.monotonic()))
            # Longer than a worker that says nothing is taken for one that is there.
            return bool(asked) and time.monotonic() - asked[0][1] > 5 and len(store.workers()) == 1

        bucket = {"SAE_SERVICE_STORAGE_URL": "s3://saes/prefix", "AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        access = {"AWS_ALLOW_HTTP": "true", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}
        assert while_a_worker_runs(settings.data_dir, is_there_while_it_waits, **bucket, **access) < 20
        asked[0][0].close()
