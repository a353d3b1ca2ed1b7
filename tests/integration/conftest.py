"""The tables of the service, on SQLite and on PostgreSQL, its REST interface without a worker, and a worker's side of a job."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from sae_service.jobs.database import Database
from sae_service.jobs.migration import migrate
from sae_service.jobs.presence import Presence
from sae_service.jobs.store import JobStore
from sae_service.settings import Settings
from sae_service.storage.cache import ActivationCache
from tests.finished_jobs import Finished, tiny_job
from tests.integration.supervised import Worker
from workers import child as child_module


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('database') / 'service.db'}"
    else:
        url = request.getfixturevalue("postgres_url")
    database = Database(url)
    migrate(database)
    Presence(database, "worker-1", "default", 1, lease_s=60).renew()
    yield database
    database.engine.dispose()


@pytest.fixture
def store(database: Database) -> JobStore:
    return JobStore(database)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


@pytest.fixture
def api(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), "http://localhost", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    return Worker(tmp_path)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ActivationCache:
    """An empty activation cache of small chunks, in `tmp_path / "cache"`."""
    from tests import cached_streams

    cached_streams.make_small(monkeypatch)
    return cached_streams.opened(tmp_path / "cache")


@pytest.fixture
def live(cache: ActivationCache) -> Any:
    """The model's own rows; see `live_rows`."""
    from tests.cached_streams import live_rows

    return live_rows()


@pytest.fixture
def filled(cache: ActivationCache, live: Any) -> ActivationCache:
    """The activation cache with these rows."""
    from tests.cached_streams import Reader

    reader = Reader(cache, "fill")
    assert reader.read(6) == live
    assert reader.share == "0.0%"
    return cache


@pytest.fixture
def child_runs(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def replace(program: str) -> None:
        def popen(_: list[str], **options: Any) -> Any:
            return real([sys.executable, "-c", program], **options)

        monkeypatch.setattr(child_module.subprocess, "Popen", popen)

    real = subprocess.Popen
    return replace


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A service in which jobs are carried out as they are submitted."""
    return Finished(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="session")
def finished_api(finished: Finished) -> Iterator[TestClient]:
    with TestClient(create_app(finished.settings), "http://localhost") as client:
        yield client


@pytest.fixture(scope="session")
def trained(finished: Finished, finished_api: TestClient) -> str:
    """A job there that has trained the SAEs a, b and c."""
    return finished.submitted(finished_api, tiny_job())


@pytest.fixture(scope="session")
def looked(finished: Finished, finished_api: TestClient, trained: str) -> str:
    """A job that has looked at the latents of a."""
    spec = {"kind": "latents", "job": trained, "saes": ["a"], "tokens": 6000, "passage_tokens": 32}
    return finished.submitted(finished_api, spec)
