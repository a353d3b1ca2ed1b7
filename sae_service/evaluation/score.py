"""Which checkpoint is the best."""

import math
from collections.abc import Mapping

from sae_service.spec import JobSpec
from sae_service.training.optimizer import steps_of


def score(job: JobSpec, n_steps: int, metrics: Mapping[str, Mapping[str, float]]) -> float | None:
    """What the best checkpoint of a job has least of: the mean held-out FVU of its SAEs.

    None if they were not measured, or the sparsity penalty of one had not come to its full strength after `n_steps`: a
    denser SAE reconstructs better.
    """
    warm_up = max(steps_of(sae.optimizer.sparsity_warm_up, job.stream.n_steps) for sae in job.saes)
    if not metrics or n_steps < warm_up:
        return None
    found = sum(figures["fvu"] for figures in metrics.values()) / len(metrics)
    return found if math.isfinite(found) else None
