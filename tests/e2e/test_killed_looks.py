"""Training processes that are killed as they look at latents: what they find in the end is what undisturbed ones find."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sae_service.jobs.records import Job
from tests.conftest import DEMO
from tests.finished_jobs import tiny_job
from tests.service import Service, children_of, worker_of

N_STEPS, PART = 12, {"tokens": 40_000, "best": 4, "per_quantile": 1}
PACE = {"log_every": 5, "checkpoints": {"every_tokens": 2048, "keep": 2}}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("service"), SAE_SERVICE_ALLOWED_ROOTS=f'["{DEMO}"]')
    yield service
    service.interrupt()


def files_of(service: Service, job: Job, folder: Path) -> dict[str, bytes]:
    """The arrays of a job's final checkpoint, the state of training with them."""
    assert service.client.job(job.id).status == "succeeded", service.client.events(job.id)
    final = service.client.checkpoints(job.id)[0]
    where = next((service.data_dir / "storage" / "jobs" / job.id).glob(f"step-{final.step:09d}-*"))
    found = {entry.path: (where / entry.path).read_bytes() for entry in final.files if entry.path.endswith(".safetensors")}
    assert any("latents" in path for path in found)
    return found


def killed(service: Service, spec: dict[str, Any], n_steps: int, n_kills: int = 2) -> Job:
    """A job whose training process was killed as often, each time in the middle of its look, and which has ended."""
    job = service.client.submit(spec)
    for attempt in range(1, n_kills + 1):
        looked = n_steps + 4 * attempt

        def is_looking(attempt: int = attempt, looked: int = looked) -> bool:
            job_now, found = service.client.job(job.id), service.client.checkpoints(job.id)
            assert not job_now.is_terminal, "it has ended before it could be killed"
            return job_now.attempt == attempt and bool(found) and found[0].step > looked

        service.until(is_looking)
        for pid in children_of(worker_of(service.client.job(job.id))):
            os.kill(pid, signal.SIGKILL)
        service.until(lambda attempt=attempt: service.client.job(job.id).attempt > attempt)
    return service.ended(job)


@pytest.mark.slow
def test_a_training_job_that_is_killed_as_it_looks_ends_with_the_same_bytes(service: Service, tmp_path: Path) -> None:
    spec = tiny_job(latents=PART, **PACE)
    calm = service.ended(service.client.submit(spec))
    suffered = killed(service, spec, N_STEPS)
    assert suffered.attempt == 3
    assert files_of(service, suffered, tmp_path) == files_of(service, calm, tmp_path)
    events = [event.message for event in service.client.events(suffered.id)]
    assert events.count("Measuring on held-out text.") == 1, "what was measured is not measured again"


@pytest.mark.slow
def test_a_later_look_that_is_killed_ends_with_the_same_bytes(service: Service, tmp_path: Path) -> None:
    trained = service.ended(service.client.submit(tiny_job()))
    spec = {"kind": "latents", "job": trained.id, **PART, **PACE}
    calm = service.ended(service.client.submit(spec))
    suffered = killed(service, spec, 0)
    assert suffered.attempt == 3
    assert files_of(service, suffered, tmp_path) == files_of(service, calm, tmp_path)
