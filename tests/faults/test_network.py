"""The network between workers and their PostgreSQL is cut, goes silent, and comes back."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults import invariants
from tests.faults.following import Following
from tests.faults.history import History
from tests.faults.processes import children
from tests.faults.proxy import Proxy
from tests.faults.worker import Worker
from tests.postgres import Postgres
from tests.service import Service

pytestmark = pytest.mark.faults


@dataclass
class Hosts:
    """A service without workers next to its database, and a worker at the far end of a network."""

    service: Service
    proxy: Proxy
    far: Worker
    settings: dict[str, str]


@pytest.fixture
def hosts(postgres: Postgres, tmp_path: Path, compiled: dict[str, str]) -> Iterator[Hosts]:
    proxy = Proxy(postgres.port)
    shared = compiled | {"SAE_SERVICE_STORAGE_URL": (tmp_path / "shared").as_uri()}
    service = Service(tmp_path, 0, SAE_SERVICE_DATABASE_URL=postgres.url, **shared)
    near = shared | {"SAE_SERVICE_DATABASE_URL": postgres.url}
    through = postgres.url.replace(str(postgres.port), str(proxy.port))
    far = Worker(tmp_path / "far", **shared | {"SAE_SERVICE_DATABASE_URL": through})
    yield Hosts(service, proxy, far, near)
    proxy.heal()
    far.close()
    service.interrupt()
    proxy.close()


@pytest.mark.parametrize(
    ("seconds", "fault", "forget"), [(2, "cut", False), (15, "cut", False), (15, "silence", False), (15, "silence", True)]
)
def test_a_job_outlives_a_network_that_comes_back(
    hosts: Hosts, history: History, quick: dict[str, Any], tmp_path: Path, seconds: float, fault: str, forget: bool
) -> None:
    service = hosts.service
    undisturbed = service.ended(service.client.submit(quick))
    job = service.started(quick)
    following = Following(service, job, quick)
    history.add(fault, seconds=seconds)
    getattr(hosts.proxy, fault)()
    time.sleep(seconds)
    if seconds > 10:
        assert not children(hosts.far.data_dir), "half a lease without its database, and a worker has let its job go"
    hosts.proxy.heal(forget)
    ended = service.ended(job)
    following.look()
    history.add("ended", status=ended.status, attempts=ended.attempt)
    assert ended.status == "succeeded"
    invariants.check(service, ended, quick, following.events)
    weights = tmp_path / "weights"
    assert invariants.hashes(service, ended, weights) == invariants.hashes(service, undisturbed, weights)


def test_another_worker_takes_the_job_over_and_the_one_that_comes_back_is_refused(
    hosts: Hosts, history: History, quick: dict[str, Any], tmp_path: Path
) -> None:
    service = hosts.service
    quick["stream"]["tokens"] *= 4
    job = service.started(quick)
    following = Following(service, job, quick)
    near = Worker(tmp_path / "near", **hosts.settings)
    try:
        hosts.proxy.silence()
        service.until(lambda: invariants.worker_pid(service.client.job(job.id)) == near.pid)
        assert not children(hosts.far.data_dir)
        history.add("taken over", attempt=service.client.job(job.id).attempt)
        hosts.proxy.heal()
        ended = service.ended(job)
        following.look()
        assert (ended.status, invariants.worker_pid(ended)) == ("succeeded", near.pid)
        invariants.check(service, ended, quick, following.events)
        again = service.ended(service.client.submit(quick | {"metadata": {"again": "yes"}}))
        assert again.status == "succeeded"
    finally:
        near.close()


def test_reads_are_answered_with_503_while_the_api_cannot_reach_the_database(
    postgres: Postgres, history: History, tmp_path: Path
) -> None:
    proxy = Proxy(postgres.port)
    url = postgres.url.replace(str(postgres.port), str(proxy.port))
    service = Service(tmp_path, 0, SAE_SERVICE_DATABASE_URL=url)
    try:
        for fault in (proxy.cut, postgres.kill):
            fault()
            history.add(fault.__name__)
            for path in ("/v1/jobs", "/v1/jobs/job_1", "/v1/jobs/job_1/events", "/readyz"):
                answer = httpx.get(service.url + path, timeout=30)
                assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
                assert int(answer.headers["Retry-After"]) > 0
            assert httpx.get(f"{service.url}/healthz").status_code == 200
            if fault == postgres.kill:
                postgres.start()
            proxy.heal()
            service.until(lambda: httpx.get(f"{service.url}/readyz", timeout=30).status_code == 200)
    finally:
        service.interrupt()
        proxy.close()
