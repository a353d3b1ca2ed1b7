"""The held-out rows that a job asks for."""

from collections.abc import Callable
from typing import Any

from sae_service.activations.model import LanguageModel
from sae_service.evaluation.held_out import HeldOut, ShouldStop
from sae_service.evaluation.on_synthetic import HeldOutRows
from sae_service.evaluation.on_text import HeldOutText
from sae_service.sae.inference import InferenceSAE
from sae_service.spec import JobSpec


def held_out_of(
    job: JobSpec, model: LanguageModel | None, should_stop: ShouldStop
) -> tuple[HeldOut, Callable[[InferenceSAE], dict[str, Any]] | None]:
    """The rows, and what to record of an SAE at each look, if the truth is known.

    Args:
        model: None for synthetic rows.

    Raises:
        DataNotFound, InvalidSpec, Stopped: see `HeldOutText`.
    """
    if model is None:
        rows = HeldOutRows(job)
        return rows, rows.observe
    return HeldOutText(job.stream, job.evaluation.tokens, model, should_stop), None
