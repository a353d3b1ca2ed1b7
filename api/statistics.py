"""What a model's activations are like, as a finished job has measured it."""

from collections.abc import Iterator

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from api.dependencies import Files, Jobs
from api.files import RESPONSES, Wanted, respond
from sae_service.analysis.statistics.files import COLUMNS, RECORD
from sae_service.analysis.statistics.records import Statistics
from sae_service.errors import DamagedCheckpoint, NotFound
from sae_service.jobs.records import Checkpoint, FileEntry
from sae_service.jobs.store import JobStore

router = APIRouter(tags=["jobs"])


def _found(jobs: JobStore, job_id: str, path: str) -> tuple[Checkpoint, FileEntry]:
    """The final checkpoint of a job of this kind, and a file of it. Raises NotFound."""
    job = jobs.summary(job_id)
    if job.summary.kind != "statistics":
        hint = "Submit one with kind: statistics, or `sae-service statistics measure`."
        raise NotFound(f"job {job_id} measures no statistics: its kind is {job.summary.kind}.", "job_id", hint)
    if job.status != "succeeded":
        raise NotFound(f"job {job_id} is {job.status}; there are statistics once it has succeeded", "job_id")
    final = jobs.checkpoint(job_id, "latest")
    entry = next((entry for entry in final.files if entry.path == path), None)
    if entry is None:
        raise NotFound(f"checkpoint {final.id} has no file {path}")
    return final, entry


@router.get("/jobs/{job_id}/statistics")
def get_statistics(job_id: str, jobs: Jobs, storage: Files) -> Statistics:
    """What the model's activations are like: norms, distributions, outliers, attention, and what that says of how to train."""
    final, entry = _found(jobs, job_id, RECORD)
    try:
        return Statistics.model_validate_json(storage.get(f"{final.key}/{entry.path}"))
    except ValueError as error:
        raise DamagedCheckpoint(f"the statistics of job {job_id} cannot be read: {error}") from error


FILE = "/jobs/{job_id}/statistics/file"


@router.head(FILE, include_in_schema=False)
@router.get(FILE, response_class=StreamingResponse, responses=RESPONSES)
def download_statistics(request: Request, job_id: str, jobs: Jobs, storage: Files, wanted: Wanted) -> Response:
    """The figures by position, dimension and head, as one file in the format of safetensors."""
    final, entry = _found(jobs, job_id, COLUMNS)
    key = f"{final.key}/{entry.path}"

    def read(start: int, end: int) -> Iterator[bytes]:
        # Asked for before the headers go out: a missing file is an error, not a broken download.
        storage.size(key)
        return storage.stream(key, start, end)

    return respond(request, entry, wanted, read, "private, no-cache")
