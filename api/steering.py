"""What steering does to a model, as a finished job has seen it."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from api.dependencies import Files, Jobs
from api.files import RESPONSES, Wanted
from api.results import file, record
from sae_service.analysis.steering.files import COLUMNS, RECORD
from sae_service.analysis.steering.records import Steering

router = APIRouter(tags=["jobs"])
FILE = "/jobs/{job_id}/steering/file"


@router.get("/jobs/{job_id}/steering")
def get_steering(job_id: str, jobs: Jobs, storage: Files) -> Steering:
    """What the model says at each coefficient: losses, divergences, logits, what carries the effect, continuations."""
    return record(Steering, jobs, storage, job_id, "steering", RECORD)


@router.head(FILE, include_in_schema=False)
@router.get(FILE, response_class=StreamingResponse, responses=RESPONSES)
def download_steering(request: Request, job_id: str, jobs: Jobs, storage: Files, wanted: Wanted) -> Response:
    """The figures of each prompt at each coefficient, as one file in the format of safetensors."""
    return file(request, jobs, storage, job_id, "steering", COLUMNS, wanted)
