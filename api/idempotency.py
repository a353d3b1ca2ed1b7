"""Requests that make a job, and their repetitions, which return the job that the first one made."""

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Header, Response

from api.dependencies import Jobs, TheCaller
from sae_service.errors import BadRequest
from sae_service.jobs.records import Checkpoint, Job
from sae_service.jobs.store import JobStore

HEADER = "Idempotency-Key"
QUOTE = '"'
REPEATED: dict[int | str, dict[str, Any]] = {
    200: {"model": Job, "description": "The job that an earlier request with the same Idempotency-Key has made."}
}
"""The further answer of an operation that makes a job."""


@dataclass(frozen=True)
class Asked:
    """What has been asked for, so that its repetition is known again; the hash is of its words: `latest` may mean another
    checkpoint by then.
    """

    jobs: JobStore
    response: Response
    key: str | None
    digest: str

    def made_before(self) -> Job | None:
        """The job that the same request has made when it came before; nothing is looked at again then."""
        job = self.jobs.requested(self.key, self.digest)
        return None if job is None else self._answer(job, is_new=False)

    def submit(self, spec: dict[str, Any], origin: Checkpoint | None = None) -> Job:
        """Queues the job, unless the same request has done so meanwhile."""
        return self._answer(*self.jobs.submit(spec, self.key, self.digest, origin))

    def _answer(self, job: Job, is_new: bool) -> Job:
        self.response.status_code = 201 if is_new else 200
        self.response.headers["Location"] = f"/v1/jobs/{job.id}"
        return job


@dataclass(frozen=True)
class Repeatable:
    """A request that may come again. Its key tells one caller's from all others."""

    jobs: JobStore
    response: Response
    key: str | None

    def asks(self, *words: str) -> Asked:
        """What it asks for, in words."""
        return Asked(self.jobs, self.response, self.key, hashlib.sha256(json.dumps(words).encode()).hexdigest())


async def _repeatable(
    jobs: Jobs, caller: TheCaller, response: Response,
    idempotency_key: Annotated[
        str | None, Header(max_length=255, description="A repetition with the same key returns the first job.")
    ] = None,
) -> Repeatable:  # fmt: skip
    if idempotency_key is None:
        return Repeatable(jobs, response, None)
    key = idempotency_key.strip(QUOTE)
    if not key.strip():
        raise BadRequest("the key is empty, so it tells no request from another", HEADER, "Leave it out, or draw one at random.")
    return Repeatable(jobs, response, hashlib.sha256(f"{caller.digest} {key}".encode()).hexdigest())


MayComeAgain = Annotated[Repeatable, Depends(_repeatable)]
