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
from uuid import uuid4

import pytest
import sqlalchemy as sa

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


def test_a_worker_without_a_job_keeps_two_connections_to_postgresql(tmp_path: Path, postgres_url: str) -> None:
    server, name = sa.create_engine(postgres_url, isolation_level="AUTOCOMMIT"), f"idle_{uuid4().hex}"
    with server.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    counts: list[int] = []
    query = sa.text("SELECT count(*) FROM pg_stat_activity WHERE datname = :name AND application_name = 'sae-service-worker'")

    def counted() -> bool:
        with server.connect() as connection:
            found = connection.execute(query, {"name": name}).scalar_one()
        if found:
            counts.append(found)
        return len(counts) == 60

    url = sa.make_url(postgres_url).set(drivername="postgresql", database=name).render_as_string(hide_password=False)
    while_a_worker_runs(tmp_path, counted, SAE_SERVICE_DATABASE_URL=url)
    server.dispose()
    # Where two of its threads ask at the same moment, one more is opened, and closed at once.
    assert sorted(counts)[len(counts) // 2] <= 2, counts


def test_a_job_that_an_older_release_has_queued_is_taken_and_one_that_cannot_be_read_is_not_tried_again(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, lease_s=1)
    database = Database(settings.resolved_database_url())
    migrate(database)
    store = JobStore(database, settings.lease_s)
    job = submitted(store, checkpoints={"keep": 2})
    with database.engine.begin() as connection:
        connection.execute(sa.text("UPDATE workflow_status SET queue_name = 'default'"))
    while_a_worker_runs(tmp_path, lambda: store.get(job.id).is_terminal)
    found = store.get(job.id)
    assert found.error is not None
    assert (found.status, found.error.code, found.attempt) == ("failed", "wrong_version", 1)
