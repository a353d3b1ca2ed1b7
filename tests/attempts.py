"""Jobs as they are submitted, claimed and saved, without a training process."""

from typing import Any

from sae_service.jobs.attempts import Attempt
from sae_service.jobs.database import Database
from sae_service.jobs.records import Job
from sae_service.jobs.store import JobStore

SPEC: dict[str, Any] = {"queue": "default", "priority": 0, "metadata": {"team": "a"}, "saes": []}
CRASH = {"code": "worker_crashed", "message": "It fell over.", "param": None}


def submitted(store: JobStore, **changes: Any) -> Job:
    return store.submit(SPEC | changes)[0]


def claimed(database: Database, store: JobStore) -> Attempt:
    attempt = Attempt(database, submitted(store).id, 1)
    assert attempt.claim("worker-1") is not None
    return attempt


def checkpoint(step: int, is_final: bool = False) -> dict[str, Any]:
    return {"step": step, "tokens": step * 256, "is_final": is_final, "files": [], "metrics": {}}


def statuses(store: JobStore, job_id: str) -> list[str]:
    return [event.data["status"] for event in store.events(job_id) if event.type == "status"]
