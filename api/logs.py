"""What the training processes of a job have logged."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import PlainTextResponse

from api.dependencies import Files, Jobs
from sae_service.storage import attempt_logs

router = APIRouter(tags=["jobs"])
SHOWN: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The end of the log, 64 KiB at most.",
        "headers": {"X-Attempt": {"description": "The attempt whose log it is.", "schema": {"type": "integer"}}},
    }
}


@router.get("/jobs/{job_id}/logs", response_class=PlainTextResponse, responses=SHOWN)
def get_log(
    job_id: str,
    jobs: Jobs,
    storage: Files,
    attempt: Annotated[int | None, Query(ge=1, lt=1 << 31, description="By default the last one that has a log.")] = None,
    lines: Annotated[int | None, Query(ge=1, le=10_000, description="Only the last so many lines.")] = None,
) -> PlainTextResponse:
    """The end of an attempt's log as plain text: what its training process has said, with the traceback if it broke. While the
    process runs, the log is at most half a minute old. 404 before there is one.
    """
    jobs.summary(job_id)
    number = attempt_logs.latest(storage, job_id) if attempt is None else attempt
    return PlainTextResponse(attempt_logs.read(storage, job_id, number, lines), headers={"X-Attempt": str(number)})
