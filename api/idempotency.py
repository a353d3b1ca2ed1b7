"""Requests that make a job, and their repetitions, which return the job that the first one made."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Header, Response

from sae_service.jobs.records import Job
from sae_service.jobs.store import JobStore

IdempotencyKey = Annotated[str | None, Header(max_length=255, description="A repetition with the same key returns the first job.")]
Made = tuple[Job, bool]
"""A job, and whether it is new."""
QUOTE = '"'


@dataclass(frozen=True)
class Asked:
    """A request, so that its repetition is known again; the hash is of its words: `latest` may mean another one by then."""

    key: str | None
    digest: str

    @staticmethod
    def by(caller: str, idempotency_key: str | None, *words: str) -> "Asked":
        """What a caller has asked for. The key tells one caller's repeated request from all others."""
        key = None
        if idempotency_key is not None:
            key = hashlib.sha256(f"{caller} {idempotency_key.strip(QUOTE)}".encode()).hexdigest()
        return Asked(key, hashlib.sha256(json.dumps(words).encode()).hexdigest())


def once(asked: Asked, made: Callable[[Asked], Made], jobs: JobStore, response: Response) -> Job:
    """The job that a request makes, or has made when it came before: nothing is looked at again then."""
    known = jobs.requested(asked.key, asked.digest)
    job, is_new = (known, False) if known else made(asked)
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job
