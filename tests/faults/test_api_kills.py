"""The API is killed while users talk to it."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sae_service.errors import ServiceUnavailable
from sae_service.jobs.records import Job
from tests.faults import invariants
from tests.faults.following import Following
from tests.faults.history import History
from tests.faults.processes import api_of
from tests.faults.worker import Worker
from tests.service import Service

pytestmark = pytest.mark.faults
N_KILLS = 5


def submit_until_answered(service: Service, spec: dict[str, Any], key: str) -> Job:
    """As a careful user submits: the same request again until there is an answer."""
    while True:
        try:
            return service.client.submit(spec, idempotency_key=key)
        except ServiceUnavailable:
            time.sleep(0.1)


def test_a_request_that_is_repeated_through_kills_of_the_api_makes_one_job(
    history: History, quick: dict[str, Any], tmp_path: Path
) -> None:
    service = Service(tmp_path, 0)
    quick["stream"]["tokens"] = 64
    try:
        ids: set[str] = set()
        for turn in range(N_KILLS):
            api = api_of(service)
            with ThreadPoolExecutor(4) as users:
                asked = [users.submit(submit_until_answered, service, quick, f"key-{turn}") for _ in range(4)]
                time.sleep(history.random.uniform(0, 0.05))
                os.kill(api.pid, signal.SIGKILL)
                history.add("kill", module="api", pid=api.pid, answered=sum(answer.done() for answer in asked))
                service.process.wait()
                service.start()
            found = [answer.result() for answer in asked]
            assert len({job.id for job in found}) == 1
            ids |= {job.id for job in found}
        assert {job.id for job in service.client.jobs()} == ids
        assert len(ids) == N_KILLS
    finally:
        service.interrupt()


def test_a_job_does_not_notice_that_the_api_is_killed(
    history: History, quick: dict[str, Any], tmp_path: Path, compiled: dict[str, str]
) -> None:
    service = Service(tmp_path, 0, **compiled)
    worker = Worker(tmp_path, **compiled)
    try:
        quick["stream"]["tokens"] *= 3
        job = service.started(quick)
        following = Following(service, job, quick)
        for _ in range(2):
            api = api_of(service)
            os.kill(api.pid, signal.SIGKILL)
            history.add("kill", module="api", pid=api.pid)
            service.process.wait()
            time.sleep(history.random.uniform(0, 3))
            service.start()
            following.look()
        ended = service.ended(job)
        following.look()
        assert (ended.status, ended.attempt) == ("succeeded", 1)
        invariants.check(service, ended, quick, following.events)
    finally:
        worker.close()
        service.interrupt()
