"""A job over two hosts as their users run them: a service on the first, a worker that follows it on the other."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.service import CLI, PATIENCE_S, Service, children_of, free_port

SEVERAL = {"SAE_SERVICE_HOSTS": "2", "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}


class Follower:
    """`sae-service worker` on the second host."""

    def __init__(self, service: Service, settings: dict[str, str]) -> None:
        environment = os.environ | settings | {"SAE_SERVICE_HOST_INDEX": "1"}
        with (service.data_dir / "follower.log").open("ab") as log:
            command = [*CLI, "worker", "--data-dir", str(service.data_dir)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def settings() -> dict[str, str]:
    return SEVERAL | {"SAE_SERVICE_COORDINATOR": f"localhost:{free_port()}"}


@pytest.fixture
def service(tmp_path: Path, settings: dict[str, str]) -> Iterator[Service]:
    folder = tmp_path / "service"
    folder.mkdir()
    service = Service(folder, 1, **settings)
    yield service
    service.interrupt()


@pytest.fixture
def follow(service: Service, settings: dict[str, str]) -> Iterator[Callable[[], Follower]]:
    """Starts a worker on the second host; none outlives the test."""
    begun: list[Follower] = []

    def follow() -> Follower:
        begun.append(Follower(service, settings))
        return begun[-1]

    yield follow
    for follower in begun:
        follower.process.kill()


@pytest.fixture
def shared_spec(spec: dict[str, Any]) -> dict[str, Any]:
    """A job on text whose SAEs are split over the two, one by its latents, one by rows."""
    spec["stream"]["tokens"] = 200 * 256
    spec["checkpoints"] = {"every_tokens": 20 * 256}
    for sae, shard in zip(spec["saes"], ("latents", "batch"), strict=True):
        sae["shard"] = shard
    return spec | {"gpus": 2}


@pytest.mark.slow
def test_a_job_survives_the_death_and_the_stop_of_the_second_host(
    service: Service, follow: Callable[[], Follower], shared_spec: dict[str, Any], tmp_path: Path
) -> None:
    follower = follow()
    job = service.started(shared_spec)
    (child,) = children_of(follower.process.pid)
    os.kill(child, signal.SIGKILL)
    service.until(lambda: service.client.job(job.id).attempt == 2)
    saved = service.client.checkpoints(job.id)[0].step
    service.until(lambda: service.client.checkpoints(job.id)[0].step > saved)
    assert follower.stop() == 0
    service.until(lambda: service.client.job(job.id).attempt == 3)
    said = [event.message for event in service.client.events(job.id)]
    assert sum("crash 1 of 3" in message for message in said) == 1
    follower = follow()
    last = service.ended(job)
    assert (last.status, last.attempt) == ("succeeded", 3)
    assert follower.stop() == 0
    stored = {path.name for path in (service.data_dir / "storage" / "jobs" / job.id).glob("step-*")}
    assert len(stored) == len(service.client.checkpoints(job.id))
    assert len(service.weights(job, tmp_path / "saes")) == 2
