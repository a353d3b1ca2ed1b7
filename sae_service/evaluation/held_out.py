"""What every origin of held-out rows can do, text or synthetic: measure SAEs on them, as often as it is asked to."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from sae_service.sae.inference import InferenceSAE
from sae_service.spec import JobSpec
from sae_service.training.optimizer import steps_of

SAEs = Mapping[str, Callable[[], InferenceSAE]]
"""What loads each SAE, for raw activations and with its sites, by the SAE's name."""
ShouldStop = Callable[[], bool]


class HeldOut(Protocol):
    """Rows that no SAE was trained on. What does not depend on an SAE is computed once."""

    def evaluate(self, saes: SAEs, should_stop: ShouldStop = ...) -> dict[str, Any]:
        """Metrics of each SAE, by its name. Raises Stopped."""
        ...


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
