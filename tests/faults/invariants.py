"""What must hold after every fault, whatever it was."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae_service.jobs.records import Event, Job
from tests.faults.processes import children, orphans
from tests.service import Service

TERMINAL = ("succeeded", "failed", "cancelled")


def check(service: Service, job: Job, spec: dict[str, Any], seen: list[Event] | None = None) -> None:
    """Everything that one ended job must fulfil.

    Args:
        seen: the events as a user followed them during the faults, who must have missed none.
    """
    job = service.client.job(job.id)
    assert job.is_terminal, job
    events = service.client.events(job.id)
    assert [event.id for event in events] == list(range(1, len(events) + 1)), "an event is missing or repeated"
    assert seen is None or seen == events, "who follows a job must see the events that are stored"
    statuses = [event.data["status"] for event in events if event.type == "status"]
    assert [status for status in statuses if status in TERMINAL] == [job.status]
    assert statuses[-1] == job.status
    assert events[-1].type == "status", "something was recorded after the end"
    started = [event.message for event in events if event.message.startswith("Attempt ")]
    assert len(started) == len(set(started)), "an attempt was started twice"
    check_checkpoints(service, job, events)
    if job.status == "succeeded":
        check_metrics(service, job, spec)


def check_checkpoints(service: Service, job: Job, events: list[Event]) -> None:
    """One chain of rising steps, which ends with the job."""
    steps = [event.data["step"] for event in events if event.type == "checkpoint"]
    if job.status == "succeeded" and steps[-2:-1] == steps[-1:]:
        # It was stopped in its evaluation: the final checkpoint takes the place of one of the same step.
        steps.pop()
    assert steps == sorted(set(steps)), "a checkpoint was committed twice, or behind a later one"
    kept = service.client.checkpoints(job.id)
    assert [checkpoint.step for checkpoint in reversed(kept)] == steps[len(steps) - len(kept) :]
    if job.status == "succeeded":
        assert kept[0].is_final
        assert not any(checkpoint.is_final for checkpoint in kept[1:])
    else:
        assert not any(checkpoint.is_final for checkpoint in kept)


def check_metrics(service: Service, job: Job, spec: dict[str, Any]) -> None:
    """One row for each SAE and each logged step, the last one included, none twice and none missing."""
    every, n_steps = spec["log_every"], spec["stream"]["tokens"] // spec["stream"]["batch"]
    names = sorted(sae["name"] for sae in spec["saes"])
    rows = [(row.step, row.sae) for row in service.client.metrics(job.id)]
    steps = sorted({*range(every, n_steps + 1, every), n_steps})
    assert rows == [(step, name) for step in steps for name in names]


def check_quiet(service: Service) -> None:
    """Once all jobs have ended, no training process is left."""
    service.until(lambda: not children(service.data_dir))
    assert not orphans(service.data_dir)


def check_nothing_left(service: Service, job: Job, folders: Callable[[], list[str]]) -> None:
    """What cut-off attempts have written is deleted, soon after the end; what was committed, and the logs, is not."""
    n_kept = len(service.client.checkpoints(job.id))
    service.until(lambda: len(set(folders()) - {"logs"}) <= n_kept)
    assert len(set(folders()) - {"logs"}) == n_kept


def worker_pid(job: Job) -> int | None:
    """The process id of the job's worker."""
    return int(job.worker.split(":")[1]) if job.worker else None


def hashes(service: Service, job: Job, folder: Path) -> dict[str, str]:
    """SHA-256 of each weight file of an ended job, of the bytes as a user downloads them."""
    return {path: hashlib.sha256(content).hexdigest() for path, content in service.weights(job, folder / job.id).items()}
