"""What a model's activations are like, as a finished job has measured it."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from api.dependencies import Files, Jobs
from api.files import RESPONSES, Wanted
from api.results import file, record
from sae_service.analysis.statistics.files import COLUMNS, RECORD
from sae_service.analysis.statistics.records import Statistics

router = APIRouter(tags=["jobs"])


@router.get("/jobs/{job_id}/statistics")
def get_statistics(job_id: str, jobs: Jobs, storage: Files) -> Statistics:
    """What the model's activations are like: norms, distributions, outliers, attention, and what that says of how to train."""
    return record(Statistics, jobs, storage, job_id, "statistics", RECORD)


FILE = "/jobs/{job_id}/statistics/file"


@router.head(FILE, include_in_schema=False)
@router.get(FILE, response_class=StreamingResponse, responses=RESPONSES)
def download_statistics(request: Request, job_id: str, jobs: Jobs, storage: Files, wanted: Wanted) -> Response:
    """The figures by position, dimension and head, as one file in the format of safetensors."""
    return file(request, jobs, storage, job_id, "statistics", COLUMNS, wanted)
