"""New jobs that go on from an old one: extend, fork, retry. The old job stays as it is."""

from fastapi import APIRouter, Response
from pydantic import Field

from api.dependencies import Caller, Jobs
from api.idempotency import Asked, IdempotencyKey, Made, once
from sae_service.continuation import Changes, continued
from sae_service.errors import Conflict, NotFound
from sae_service.jobs.records import Checkpoint, Job
from sae_service.jobs.store import JobStore
from sae_service.schema import Frozen
from sae_service.spec import JobSpec
from sae_service.spec.stored import read

router = APIRouter(tags=["jobs"])


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

    def made(asked: Asked) -> Made:
        parent = jobs.get(job_id)
        if parent.status != "succeeded":
            raise Conflict(f"job {job_id} is {parent.status}; only one that has succeeded can be extended. Fork it instead.")
        return _go_on(jobs, parent, Fork(tokens=extension.tokens), asked)

    return once(Asked.by(caller, idempotency_key, "extend", job_id, extension.model_dump_json()), made, jobs, response)


@router.post("/jobs/{job_id}/fork", status_code=201)
def fork_job(
    job_id: str, fork: Fork, jobs: Jobs, caller: Caller, response: Response, idempotency_key: IdempotencyKey = None
) -> Job:
    """A new job that goes on from a checkpoint, of a running job too, with other numbers: learning rate, sparsity, tokens."""

    def made(asked: Asked) -> Made:
        return _go_on(jobs, jobs.get(job_id), fork, asked)

    return once(Asked.by(caller, idempotency_key, "fork", job_id, fork.model_dump_json()), made, jobs, response)


@router.post("/jobs/{job_id}/retry", status_code=201)
def retry_job(job_id: str, jobs: Jobs, caller: Caller, response: Response, idempotency_key: IdempotencyKey = None) -> Job:
    """A new job that does what a failed or cancelled one was to do, from its last checkpoint if it has one."""

    def made(asked: Asked) -> Made:
        parent = jobs.get(job_id)
        if parent.status not in ("failed", "cancelled"):
            raise Conflict(f"job {job_id} is {parent.status}; only one that has failed or was cancelled can be tried again")
        if jobs.checkpoints(job_id):
            return _go_on(jobs, parent, Fork(), asked)
        # What it went on from itself, if anything.
        origin = jobs.checkpoint(parent.origin.job_id, parent.origin.checkpoint_id) if parent.origin else None
        return _submit(jobs, read(parent.spec), origin, asked)

    return once(Asked.by(caller, idempotency_key, "retry", job_id), made, jobs, response)


def _go_on(jobs: JobStore, parent: Job, fork: Fork, asked: Asked) -> Made:
    try:
        origin = jobs.checkpoint(parent.id, fork.checkpoint)
    except NotFound as error:
        raise NotFound(error.message, param="/checkpoint") from error
    spec = continued(read(parent.spec), fork, origin.tokens, origin.is_final)
    return _submit(jobs, spec, origin, asked)


def _submit(jobs: JobStore, spec: JobSpec, origin: Checkpoint | None, asked: Asked) -> Made:
    return jobs.submit(spec.model_dump(mode="json"), asked.key, asked.digest, origin)
