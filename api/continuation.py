"""New jobs that go on from an old one: extend, fork, retry. The old job stays as it is."""

from fastapi import APIRouter
from pydantic import Field

from api.dependencies import Jobs
from api.idempotency import REPEATED, Asked, MayComeAgain
from sae_service.continuation import Changes, continued
from sae_service.errors import Conflict, InvalidSpec, NotFound
from sae_service.jobs.records import Failure, Job
from sae_service.schema import Frozen
from sae_service.spec import JobSpec
from sae_service.spec.stored import read, read_training

router = APIRouter(tags=["jobs"])
OF_FILES = ("/stream/model", "/stream/dataset")
"""Where a field of a spec is about files, which may have been mended since."""


class Extension(Frozen):
    """How much longer a finished job is to be trained."""

    tokens: int = Field(gt=0, lt=1 << 53, description="Rows in all, those already trained on included.")


class Fork(Changes):
    """A checkpoint, and what is to be done otherwise from there."""

    checkpoint: str = Field(
        default="latest", pattern="^[!-~]+$", max_length=200, description="The id of one of the job's checkpoints, latest or best."
    )


@router.post("/jobs/{job_id}/extend", status_code=201, responses=REPEATED)
def extend_job(job_id: str, extension: Extension, jobs: Jobs, request: MayComeAgain) -> Job:
    """A new job that trains the SAEs of a finished one on more tokens, from its last state."""
    asked = request.asks("extend", job_id, extension.model_dump_json())
    if job := asked.made_before():
        return job
    parent = jobs.get(job_id)
    if parent.status != "succeeded":
        raise Conflict(f"job {job_id} is {parent.status}; only one that has succeeded can be extended. Fork it instead.")
    return _go_on(asked, parent, Fork(tokens=extension.tokens))


@router.post("/jobs/{job_id}/fork", status_code=201, responses=REPEATED)
def fork_job(job_id: str, fork: Fork, jobs: Jobs, request: MayComeAgain) -> Job:
    """A new job that goes on from a checkpoint, of a running job too, with other numbers: learning rate, sparsity, tokens."""
    asked = request.asks("fork", job_id, fork.model_dump_json())
    return asked.made_before() or _go_on(asked, jobs.get(job_id), fork)


@router.post("/jobs/{job_id}/retry", status_code=201, responses=REPEATED)
def retry_job(job_id: str, jobs: Jobs, request: MayComeAgain) -> Job:
    """A new job that does what a failed or cancelled one was to do, from its last checkpoint if it has one."""
    asked = request.asks("retry", job_id)
    if job := asked.made_before():
        return job
    parent = jobs.get(job_id)
    if parent.status not in ("failed", "cancelled"):
        raise Conflict(f"job {job_id} is {parent.status}; only a failed or cancelled job can be retried")
    if parent.error is not None and _fails_again(parent.error):
        told = f"{parent.error.param}: {parent.error.message}" if parent.error.param else parent.error.message
        hint = "Correct it, or the file that it does not fit, and submit it as a new job."
        raise Conflict(f"job {job_id} failed by its own spec: {told}", hint=hint)
    spec = read(parent.spec)
    if isinstance(spec, JobSpec) and jobs.checkpoints(job_id):
        return _go_on(asked, parent, Fork())
    # What it went on from itself, if anything.
    origin = jobs.checkpoint(parent.origin.job_id, parent.origin.checkpoint_id) if parent.origin else None
    return asked.submit(spec.model_dump(mode="json"), origin)


def _fails_again(error: Failure) -> bool:
    """Whether a job has failed by a number or name in its spec that another attempt would meet again."""
    param = error.param or ""
    return error.code == InvalidSpec.code and not (param.startswith(OF_FILES) or "/initial" in param)


def _go_on(asked: Asked, parent: Job, fork: Fork) -> Job:
    try:
        origin = asked.jobs.checkpoint(parent.id, fork.checkpoint)
    except NotFound as error:
        raise NotFound(error.message, param="/checkpoint") from error
    spec = continued(read_training(parent.spec), fork, origin.tokens, origin.is_final)
    return asked.submit(spec.model_dump(mode="json"), origin)
