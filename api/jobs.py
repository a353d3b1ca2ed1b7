"""Jobs: create, list, look at, cancel, delete; their metrics and checkpoints, and the workers."""

import hashlib
import json
from typing import Annotated, Generic, Literal, TypeVar

from fastapi import APIRouter, Body, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field

from api.apart import Apart, TooLong
from api.dependencies import Files, Jobs, Looks, TheSettings
from api.examples import JOB_EXAMPLES
from api.idempotency import REPEATED, MayComeAgain
from sae_service import preflight
from sae_service.errors import BadRequest, InvalidSpec, NotFound, UnknownCursor
from sae_service.jobs.records import Checkpoint, Job, JobSummary, MetricsRow, Status, Worker
from sae_service.jobs.subjects import resolved
from sae_service.readable import Roots
from sae_service.schema import must
from sae_service.settings import Settings
from sae_service.spec.kinds import AnySpec
from sae_service.storage.job_folders import job_folder

router = APIRouter(tags=["jobs"])
RowId = Annotated[
    str, Field(pattern=r"^[0-9]{1,10}:[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"), must("be the last_id of the previous page")
]
"""The id of a row of metrics: its step and its SAE."""
Item = TypeVar("Item")
LOOK_S = 20
LABELS = {
    "name": "metadata", "in": "query", "style": "deepObject", "explode": True,
    "schema": {"type": "object", "additionalProperties": {"type": "string"}},
    "description": "`metadata[name]=value`: only jobs with this label.",
}  # fmt: skip


class Page(BaseModel, Generic[Item]):
    """A part of a list. The next part is asked for with `after=<last_id>`."""

    object: Literal["list"] = "list"
    data: list[Item]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


@router.post("/jobs", status_code=201, responses=REPEATED)
async def create_job(
    spec: Annotated[AnySpec, Body(openapi_examples=JOB_EXAMPLES)], settings: TheSettings, looks: Looks, request: MayComeAgain
) -> Job:
    """Checks a job and queues it. A repeated request with the same Idempotency-Key returns 200 and the same job."""
    content = spec.model_dump(mode="json")
    asked = request.asks(json.dumps(content, sort_keys=True))
    if job := await run_in_threadpool(asked.made_before):
        return job
    whole, origin = await run_in_threadpool(resolved, spec, request.jobs)
    await checked(looks, whole, settings)
    return await run_in_threadpool(asked.submit, whole.model_dump(mode="json"), origin)


async def checked(looks: Apart, spec: AnySpec, settings: Settings) -> None:
    """Raises what `preflight.check` raises, and InvalidSpec if the files of the job take too long to be looked at."""
    roots = Roots(settings.readable_roots(), settings.closed_folders())
    if not preflight.may_take_long(spec):
        preflight.check(spec, roots)
        return
    try:
        await looks.run(LOOK_S, preflight.check, spec, roots)
    except TooLong:
        hint = "A file system may be stuck, or a file be too hard to read."
        raise InvalidSpec(f"the files of the job could not be looked at in {LOOK_S} s.", hint=hint) from None


@router.get("/jobs", openapi_extra={"parameters": [LABELS]})
def list_jobs(
    request: Request,
    jobs: Jobs,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(description="The last id of the part before.")] = None,
    order: Literal["asc", "desc"] = "desc",
    status: Status | None = None,
) -> Page[JobSummary]:
    """Jobs in the order of submission, newest first. `metadata[name]=value` selects by label. A job's spec is a request away."""
    labels = {
        name.removeprefix("metadata[").removesuffix("]"): value
        for name, value in request.query_params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    if any('"' in name for name in labels):
        raise BadRequest("a label's name has no quotation mark", "metadata")
    try:
        found = jobs.find(limit + 1, after, order == "desc", status, labels)
    except NotFound:
        raise UnknownCursor(f"there is no job {after} to go on after", "after") from None
    return page(found, limit)


def page(found: list[Item], limit: int) -> Page[Item]:
    """A page of `limit` items out of a list that is longer if there are more."""
    data = found[:limit]
    ids = [str(getattr(item, "id", "")) for item in data]
    return Page(data=data, first_id=ids[0] if ids else None, last_id=ids[-1] if ids else None, has_more=len(found) > limit)


@router.get("/jobs/{job_id}", response_model=Job, responses={304: {"description": "Not Modified"}})
def get_job(
    job_id: str, jobs: Jobs, response: Response, if_none_match: Annotated[str | None, Header()] = None
) -> Job | Response:
    """One job. Its ETag changes when anything about it does."""
    job = jobs.get(job_id)
    etag = f'"{hashlib.sha256(job.model_dump_json().encode()).hexdigest()[:32]}"'
    if if_none_match is not None and etag in if_none_match:
        return Response(status_code=304, headers={"ETag": etag})
    response.headers["ETag"] = etag
    return job


@router.post("/jobs/{job_id}/cancel", responses={202: {"model": Job, "description": "The job is being stopped."}})
def cancel_job(job_id: str, jobs: Jobs, response: Response) -> Job:
    """Ends a job. 200 when it has ended; 202 while its training process still has to stop."""
    job = jobs.cancel(job_id)
    response.status_code = 202 if job.status == "cancelling" else 200
    return job


@router.post("/jobs/{job_id}/pause", responses={202: {"model": Job, "description": "The job is being saved."}})
def pause_job(job_id: str, jobs: Jobs, response: Response) -> Job:
    """Saves a job and gives its worker free. 200 when it is paused; 202 while its state is being saved."""
    job = jobs.pause(job_id)
    response.status_code = 202 if job.status == "pausing" else 200
    return job


@router.post("/jobs/{job_id}/resume")
def resume_job(job_id: str, jobs: Jobs) -> Job:
    """Queues a paused job again; it goes on where it was."""
    return jobs.resume(job_id)


@router.delete("/jobs/{job_id}", status_code=204)
def delete_job(job_id: str, jobs: Jobs, storage: Files) -> None:
    """Deletes a job that has ended, with its metrics, events and checkpoints."""
    jobs.delete(job_id, lambda: storage.delete(job_folder(job_id)))


@router.get("/workers")
def list_workers(jobs: Jobs) -> Page[Worker]:
    """The workers that are there, and the jobs that they work on."""
    return Page(data=jobs.workers())


@router.get("/jobs/{job_id}/metrics")
def list_metrics(
    job_id: str,
    jobs: Jobs,
    sae: Annotated[str | None, Query(description="Only this SAE's rows.")] = None,
    after: Annotated[RowId | None, Query(description="The last id of the part before.")] = None,
    after_step: Annotated[
        int, Query(ge=0, lt=1 << 31, description="Only rows of later steps. A part may end in the middle of a step: use `after`.")
    ] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> Page[MetricsRow]:
    """Training metrics by step and SAE, oldest first."""
    saes = [one.name for one in jobs.summary(job_id).summary.saes]
    if sae is not None and sae not in saes:
        raise NotFound(f"job {job_id} has no SAE {sae!r}; it has {', '.join(saes)}", param="sae")
    step, _, name = (after or "").partition(":")
    return page(jobs.metrics(job_id, sae, (int(step), name) if after else None, after_step, limit + 1), limit)


@router.get("/jobs/{job_id}/checkpoints")
def list_checkpoints(job_id: str, jobs: Jobs) -> Page[Checkpoint]:
    """The checkpoints that are kept, newest first; each is complete and can be downloaded."""
    jobs.summary(job_id)
    return page(jobs.checkpoints(job_id), limit=1 << 30)


@router.get("/jobs/{job_id}/checkpoints/{checkpoint_id}")
def get_checkpoint(job_id: str, checkpoint_id: str, jobs: Jobs) -> Checkpoint:
    """One checkpoint, by its id, or as `latest` (the newest) or `best` (the lowest held-out FVU)."""
    jobs.summary(job_id)
    return jobs.checkpoint(job_id, checkpoint_id)
