"""PostgreSQL goes away in the middle of everything, and comes back."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from sae_service.settings import Settings
from tests.postgres import Postgres
from tests.service import Service, children_of, worker_of


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.close()


def test_while_the_database_is_away_the_api_says_so_and_then_recovers(
    postgres: Postgres, tmp_path: Path, spec: dict[str, Any]
) -> None:
    with TestClient(create_app(Settings(data_dir=tmp_path, database_url=postgres.url)), "http://localhost") as api:
        where = api.post("/v1/jobs", json=spec).headers["Location"]
        postgres.kill()
        for _ in range(2):
            answer = api.get(where)
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
            assert int(answer.headers["Retry-After"]) > 0
            assert api.get("/healthz").status_code == 200
            assert api.get("/readyz").status_code == 503
        assert api.post("/v1/jobs", json=spec).status_code == 503
        postgres.start()
        assert api.get(where).json()["status"] == "queued"
        assert len(api.get("/v1/jobs").json()["data"]) == 1


def test_a_job_outlives_a_short_outage_in_its_own_process(
    postgres: Postgres, tmp_path: Path, spec: dict[str, Any]
) -> None:
    spec["stream"]["tokens"] = 600 * 256
    service = Service(tmp_path, SAE_SERVICE_DATABASE_URL=postgres.url, SAE_SERVICE_LEASE_S="40")
    try:
        job = service.started(spec)
        (child,) = children_of(worker_of(job))
        postgres.kill()
        time.sleep(3)
        assert children_of(worker_of(job)) in ([child], [])
        postgres.start()
        ended = service.ended(job)
        assert (ended.status, ended.attempt) == ("succeeded", 1)
        ids = [event.id for event in service.client.events(job.id)]
        assert ids == list(range(1, len(ids) + 1))
    finally:
        service.interrupt()
