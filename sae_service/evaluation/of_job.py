"""The held-out rows that a job asks for."""

from collections.abc import Callable

from sae_service.activations.model import LanguageModel
from sae_service.evaluation.held_out import HeldOut, Observe, ShouldStop
from sae_service.evaluation.on_synthetic import HeldOutRows
from sae_service.evaluation.on_text import HeldOutText
from sae_service.spec import EvaluationSpec, JobSpec


def held_out_of(
    job: JobSpec, model: LanguageModel | None, should_stop: ShouldStop, event: Callable[[str, str], None]
) -> tuple[HeldOut, Observe | None]:
    """The rows, and what to record of an SAE at each look, if the truth is known.

    Args:
        model: None for synthetic rows.
        event: called with a level and a sentence if there is less text than was asked for: a warning, unless that is the default.

    Raises:
        DataNotFound, InvalidSpec, Stopped: see `HeldOutText`.
    """
    if model is None:
        rows = HeldOutRows(job)
        return rows, rows.observe
    text = HeldOutText(job.stream, job.evaluation.tokens, model, should_stop)
    if text.n_tokens <= job.evaluation.tokens - job.stream.context_size:
        if job.evaluation.tokens == EvaluationSpec().tokens:
            event("info", f"The held-out text has {text.n_tokens} tokens; the figures are of all of them.")
        else:
            asked = f"{job.evaluation.tokens} were asked for"
            event("warning", f"evaluation.tokens: {asked}, and the held-out text has only {text.n_tokens}.")
    return text, None
