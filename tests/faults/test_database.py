"""The database is killed or locked under the whole service."""

import sqlite3
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults import invariants
from tests.faults.following import Following
from tests.faults.history import History
from tests.postgres import Postgres
from tests.service import Service

pytestmark = pytest.mark.faults


def test_jobs_outlive_a_postgresql_that_is_killed_again_and_again(
    postgres: Postgres, history: History, quick: dict[str, Any], tmp_path: Path, compiled: dict[str, str]
) -> None:
    service = Service(tmp_path, 2, SAE_SERVICE_DATABASE_URL=postgres.url, **compiled)
    try:
        undisturbed = service.ended(service.client.submit(quick))
        jobs = [Following(service, service.client.submit(quick), quick) for _ in range(4)]
        for _ in range(4):
            time.sleep(history.random.uniform(3, 8))
            postgres.kill()
            history.add("kill", module="postgres")
            answer = httpx.get(f"{service.url}/v1/jobs/{jobs[0].job.id}", timeout=30)
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
            time.sleep(history.random.uniform(0, 10))
            postgres.start()
            service.until(service.answers)
            for following in jobs:
                following.look()
        weights = tmp_path / "weights"
        expected = invariants.hashes(service, undisturbed, weights)
        for following in jobs:
            ended = service.ended(following.job)
            following.look()
            history.add("ended", job=ended.id, status=ended.status, attempts=ended.attempt, crashes=following.crashes)
            assert ended.status == "succeeded", following.events[-5:]
            assert not any("crash " in event.message for event in following.events), "an outage is no crash of a job"
            invariants.check(service, ended, quick, following.events)
            assert invariants.hashes(service, ended, weights) == expected
        invariants.check_quiet(service)
    finally:
        service.interrupt()


@pytest.mark.parametrize("seconds", [4, 14, 40])
def test_a_job_outlives_a_sqlite_file_that_is_held_locked(
    history: History, quick: dict[str, Any], tmp_path: Path, compiled: dict[str, str], seconds: float
) -> None:
    service = Service(tmp_path, **compiled)
    try:
        undisturbed = service.ended(service.client.submit(quick))
        job = service.started(quick)
        following = Following(service, job, quick)
        with sqlite3.connect(tmp_path / "service.db", isolation_level=None) as other:
            other.execute("BEGIN EXCLUSIVE")
            history.add("lock", seconds=seconds)
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                assert service.client.job(job.id).id == job.id, "reads are answered"
                time.sleep(0.5)
            other.execute("ROLLBACK")
        ended = service.ended(job)
        following.look()
        history.add("ended", status=ended.status, attempts=ended.attempt)
        assert ended.status == "succeeded"
        assert not any("crash " in event.message for event in following.events), "a lock is no crash of a job"
        invariants.check(service, ended, quick, following.events)
        weights = tmp_path / "weights"
        assert invariants.hashes(service, ended, weights) == invariants.hashes(service, undisturbed, weights)
    finally:
        service.interrupt()
