"""What a job of each kind does: the one place where a kind and its work meet."""

from collections.abc import Callable
from typing import Any

from sae_service import hosts, pipeline
from sae_service.analysis import latents_job
from sae_service.news import Checkpoint

RUNS: dict[str, Callable[..., Checkpoint | None]] = {"train": pipeline.run, "latents": latents_job.run}
"""All take the job's spec and the arguments of `pipeline.run`."""
OF_ALL_HOSTS = {"train"}
"""What several hosts do together; all else is done by the first of them."""


def run(job: Any, *arguments: Any, **further: Any) -> Checkpoint | None:
    """Carries out a job of any kind. Returns its final checkpoint, or None if it was asked to stop."""
    if job.kind not in OF_ALL_HOSTS and not hosts.leads():
        return None
    return RUNS[job.kind](job, *arguments, **further)
