"""New jobs that go on from an old one: extend, fork, retry. The old job stays as it is."""

import hashlib
import json
from typing import Annotated

from fastapi import APIRouter, Header, Response
from pydantic import Field

from api.dependencies import Caller, Jobs
from api.jobs import request_key
from sae_service.continuation import Changes, continued
from sae_service.errors import Conflict, NotFound
from sae_service.jobs.records import Checkpoint, Job
from sae_service.jobs.store import JobStore
from sae_service.schema import Frozen
from sae_service.spec import JobSpec

router = APIRouter(tags=["jobs"])
IdempotencyKey = Annotated[str | None, Header(max_length=255, description="A repetition with the same key returns the first job.")]


class Extension(Frozen):
    """How much longer a finished job is to be trained."""

    tokens: int = Field(gt=0, lt=1 << 53, description="Rows in all, those already trained on included.")


class Fork(Changes):
    """A checkpoint, and what is to be done otherwise from there."""

    checkpoint: str = Field(default="latest", description="The id of one of the job's checkpoints.")


@router.post("/jobs/{job_id}/extend", status_code=201)
def extend_job(
    job_id: str, extension: Extension, jobs: Jobs, caller: Caller, response: Response, idempotency_key: IdempotencyKey = None
) -> Job:
    """A new job that trains the SAEs of a finished one on more tokens, from its last state."""
    parent = jobs.get(job_id)
    if parent.status != "succeeded":
        raise Conflict(f"job {job_id} is {parent.status}; only one that has succeeded can be extended. Fork it instead.")
    return _go_on(jobs, parent, Fork(tokens=extension.tokens), request_key(caller, idempotency_key), response)


@router.post("/jobs/{job_id}/fork", status_code=201)
def fork_job(
    job_id: str, fork: Fork, jobs: Jobs, caller: Caller, response: Response, idempotency_key: IdempotencyKey = None
) -> Job:
    """A new job that goes on from a checkpoint, of a running job too, with other numbers: learning rate, sparsity, tokens."""
    return _go_on(jobs, jobs.get(job_id), fork, request_key(caller, idempotency_key), response)


@router.post("/jobs/{job_id}/retry", status_code=201)
def retry_job(job_id: str, jobs: Jobs, caller: Caller, response: Response, idempotency_key: IdempotencyKey = None) -> Job:
    """A new job that does what a failed or cancelled one was to do, from its last checkpoint if it has one."""
    parent, key = jobs.get(job_id), request_key(caller, idempotency_key)
    if parent.status not in ("failed", "cancelled"):
        raise Conflict(f"job {job_id} is {parent.status}; only one that has failed or was cancelled can be tried again")
    if jobs.checkpoints(job_id):
        return _go_on(jobs, parent, Fork(), key, response)
    # What it went on from itself, if anything.
    origin = jobs.checkpoint(parent.origin.job_id, parent.origin.checkpoint_id) if parent.origin else None
    return _submit(jobs, JobSpec.model_validate(parent.spec), origin, key, response)


def _go_on(jobs: JobStore, parent: Job, fork: Fork, key: str | None, response: Response) -> Job:
    try:
        origin = jobs.checkpoint(parent.id, fork.checkpoint)
    except NotFound as error:
        raise NotFound(error.message, param="/checkpoint") from error
    spec = continued(JobSpec.model_validate(parent.spec), fork, origin.tokens)
    return _submit(jobs, spec, origin, key, response)


def _submit(jobs: JobStore, spec: JobSpec, origin: Checkpoint | None, key: str | None, response: Response) -> Job:
    content = spec.model_dump(mode="json")
    asked = [content, origin.id if origin else None]
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    job, is_new = jobs.submit(content, key, digest, origin)
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job
