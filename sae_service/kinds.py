"""What a job of each kind does: the one place where a kind and its work meet."""

from collections.abc import Callable
from typing import Any

from sae_service import pipeline
from sae_service.analysis import attribution_job, latents_job, statistics_job, steering_job
from sae_service.news import Checkpoint
from sae_service.surroundings import Surroundings

RUNS: dict[str, Callable[[Any, Surroundings], Checkpoint | None]] = {
    "train": pipeline.train,
    "latents": latents_job.run,
    "statistics": statistics_job.run,
    "steering": steering_job.run,
    "attribution": attribution_job.run,
}
"""All take the job's spec and its surroundings."""


def run(job: Any, around: Surroundings) -> Checkpoint | None:
    """Carries out a job of any kind. Returns its final checkpoint, or None if it was asked to stop."""
    return RUNS[job.kind](job, around)
