"""What Prometheus is told."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from prometheus_client import REGISTRY, generate_latest

from api.app import create_app
from api.metrics import CACHED_S, registry
from sae_service.jobs import tables
from sae_service.jobs.attempts import Attempt
from sae_service.jobs.census import by_status, census
from sae_service.jobs.database import Database
from sae_service.jobs.store import JobStore
from sae_service.settings import Settings

SPEC: dict[str, Any] = {"queue": "default", "priority": 0, "metadata": {}, "saes": [], "checkpoints": {"keep": 2}}
PROGRESS = {"step": 1, "total_steps": 2, "tokens": 1, "total_tokens": 2, "metrics": {}}


def test_requests_are_counted_by_route_and_not_by_address(api: TestClient) -> None:
    for job in ("job_1", "job_2"):
        api.get(f"/v1/jobs/{job}")
    api.get("/no/such/address")
    text = api.get("/metrics").text
    assert 'sae_http_request_seconds_count{method="GET",route="/jobs/{job_id}",status="404"}' in text
    assert 'route="none",status="404"' in text
    assert "job_1" not in text


def test_a_database_that_is_away_is_told() -> None:
    away = Database("postgresql+psycopg://sae@127.0.0.1:1/sae")
    assert "sae_database_up 0.0" in generate_latest(registry(away, lease_s=60)).decode()


def test_the_process_itself_is_measured_as_well(api: TestClient) -> None:
    assert "process_resident_memory_bytes" in api.get("/metrics").text


def test_where_keys_are_asked_for_the_metrics_ask_for_one(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, api_key_sha256=(hashlib.sha256(b"sae_secret").hexdigest(),))
    with TestClient(create_app(settings), "http://localhost") as api:
        assert api.get("/metrics").status_code == 401
        assert "sae_database_up 1.0" in api.get("/metrics", headers={"Authorization": "Bearer sae_secret"}).text


def test_the_service_is_counted_once_in_ten_seconds(api: TestClient, spec: dict[str, Any]) -> None:
    assert 'sae_jobs{status="queued"} 0.0' in api.get("/metrics").text
    assert api.post("/v1/jobs", json=spec).status_code == 201
    assert 'sae_jobs{status="queued"} 0.0' in api.get("/metrics").text
    assert CACHED_S >= 10


def test_the_queue_the_workers_and_the_speed_of_all_jobs_are_counted(database: Database, store: JobStore) -> None:
    before = census(database, lease_s=60)
    _, running = store.submit(SPEC)[0], store.submit(SPEC)[0]
    with database.transaction() as connection:
        since = sa.update(tables.jobs).where(tables.jobs.c.status == "queued")
        connection.execute(since.values(created_at=tables.jobs.c.created_at - 100))
    attempt = Attempt(database, running.id, 1)
    attempt.claim("worker-1")
    attempt.metrics([{"sae": "a", "step": 1}], PROGRESS | {"tokens_per_s": 250.0})
    found = census(database, lease_s=60)
    assert found.jobs == before.jobs | {"queued": before.jobs["queued"] + 1, "running": before.jobs["running"] + 1}
    assert found.oldest_queued_s >= 100
    assert found.workers["default"] >= 1
    assert found.tokens_per_s == before.tokens_per_s + 250.0


def test_jobs_are_counted_in_an_index_and_those_that_have_ended_are_not_read(database: Database) -> None:
    if not database.is_sqlite:
        pytest.skip("an empty table of PostgreSQL is read whole, whatever the indexes")
    with database.transaction() as connection:
        text = str(by_status().compile(database.engine, compile_kwargs={"literal_binds": True}))
        plan = " ".join(row.detail for row in connection.execute(sa.text(f"EXPLAIN QUERY PLAN {text}")))
    assert "SEARCH jobs USING COVERING INDEX ix_jobs_status (status=?)" in plan


@pytest.mark.parametrize(
    ("end", "how"),
    [
        (lambda attempt: attempt.fail({"code": "x", "message": "x", "param": None}), "failed"),
        (lambda attempt: attempt.record_crash({"code": "x", "message": "x", "param": None}), "crashed"),
        (lambda attempt: attempt.release(), "preempted"),
    ],
    ids=["failed", "crashed", "preempted"],
)
def test_attempts_are_counted_by_how_they_end(database: Database, store: JobStore, end: Any, how: str) -> None:
    def counted() -> float:
        return REGISTRY.get_sample_value("sae_attempts_ended_total", {"end": how}) or 0.0

    attempt = Attempt(database, store.submit(SPEC)[0].id, 1)
    attempt.claim("worker-1")
    before = counted()
    end(attempt)
    assert counted() == before + 1
