"""What latents contribute to what a model says, as a finished job has found it."""

from fastapi import APIRouter

from api.dependencies import Files, Jobs
from api.results import record
from sae_service.analysis.attribution.files import RECORD
from sae_service.analysis.attribution.records import Attribution

router = APIRouter(tags=["jobs"])


@router.get("/jobs/{job_id}/attribution")
def get_attribution(job_id: str, jobs: Jobs, storage: Files) -> Attribution:
    """The effect of each latent on a difference of logits: to the first order, corrected, exact; and the graph of latents."""
    return record(Attribution, jobs, storage, job_id, "attribution", RECORD)
