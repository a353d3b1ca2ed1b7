"""A job that attributes differences of logits to latents, up to the published files: what `kind: attribution` does."""

from functools import partial
from typing import Any

import numpy as np

from sae_service.activations import final_norm
from sae_service.activations.difference import Difference
from sae_service.activations.unembedding import unembedding
from sae_service.analysis.attribution.files import RECORD
from sae_service.analysis.attribution.of_prompt import OnPrompt
from sae_service.analysis.attribution.records import Attribution, PromptRead, SAETotal
from sae_service.analysis.attribution.table import Found, correlations, graph, rows, table
from sae_service.analysis.prompted import EXCLUDED, Stage, opened, rows_at
from sae_service.analysis.prompts import Reading, readings, token_id
from sae_service.errors import InvalidSpec, Stopped
from sae_service.news import Checkpoint, stop_if_asked
from sae_service.spec import AttributionSpec
from sae_service.surroundings import Surroundings


def run(job: AttributionSpec, around: Surroundings) -> Checkpoint | None:
    """Attributes. Short, and without a state to go on from: an attempt begins anew, to the same bytes.

    Returns the final checkpoint, or None if it was asked to stop.

    Raises:
        InvalidSpec, ModelNotFound, DamagedCheckpoint, StorageFailure: something does not fit, or cannot be read.
    """
    stage = opened(job, around)
    others = readings(stage.model, job.counterfactuals, EXCLUDED if job.exclude is None else job.exclude, "counterfactuals")
    stop = partial(stop_if_asked, around.should_stop, around.alive)
    try:
        prompts = [_on_prompt(job, stage, index, others[index] if others else None, stop) for index in range(len(job.prompts))]
        around.reporter.event("info", f"Attributing to the latents of {', '.join(stage.saes)}; prompts: {len(prompts)}.")
        record = _record(job, stage, prompts)
    except Stopped:
        return None
    n_tokens = sum(len(one.tokens) for one in stage.readings)
    return around.publish({RECORD: record.model_dump_json(indent=1).encode()}, len(prompts), n_tokens, {}, is_final=True)


def _on_prompt(job: AttributionSpec, stage: Stage, index: int, other: Reading | None, stop: Any) -> OnPrompt:
    """One prompt with what is attributed there. Raises InvalidSpec if a field does not fit it."""
    one, model, place = stage.readings[index], stage.model, job.contrast_place(index)
    n = len(one.tokens)
    if not -n <= job.position < n:
        raise InvalidSpec(f"there is no position {job.position} in {one.place}, which has {n} tokens", "/position")
    if other is not None and len(other.tokens) != n:
        raise InvalidSpec(f"has {len(other.tokens)} tokens, and its prompt has {n}", other.place)
    first, second = (token_id(model, token, f"{place}/{i}") for i, token in enumerate(job.contrast_of(index)))
    direction = _frozen(stage, one, job.position % n, first, second) if job.final_norm == "frozen" else None
    difference = Difference(job.position % n, first, second, direction)
    return OnPrompt(model, one, other, difference, stage.saes, stage.texts, stop)


def _frozen(stage: Stage, one: Reading, position: int, first: int, second: int) -> np.ndarray:
    """The direction of a contrast with the scale of the final norm in it. Raises InvalidSpec if that norm is not known."""
    known = unembedding(stage.model)
    if known is None or final_norm.SITE not in stage.model.bridge.hook_dict:
        raise InvalidSpec("cannot be frozen: the final norm of this model is none that is known here", "/final_norm", "Use live.")
    last = rows_at(stage.model, one.tokens[None], (final_norm.SITE,))[final_norm.SITE][0, position]
    scale = final_norm.inverse_scales(stage.model, known, last[None])[0]
    return (final_norm.contrast(known, first, second) * scale).astype(np.float32)


def _record(job: AttributionSpec, stage: Stage, prompts: list[OnPrompt]) -> Attribution:
    """All that was found. Raises Stopped."""
    assert job.model is not None
    read = [_read(stage, prompt) for prompt in prompts]
    found = [
        Found(index, name, nodes, effects)
        for index, prompt in enumerate(prompts)
        for name, (nodes, effects) in prompt.nodes(job.top).items()
    ]
    shown = table(found, job.top)
    figures = rows(shown, prompts, job.exact)
    return Attribution(
        model=job.model.name, saes=tuple(stage.saes), final_norm=job.final_norm, prompts=tuple(read),
        patched_with="counterfactual" if job.counterfactuals else "zero",
        totals=tuple(
            SAETotal(prompt=index, sae=name, n=sums.n, effect=sums.effect, error_effect=sums.error_effect)
            for index, prompt in enumerate(prompts)
            for name, sums in prompt.sums.items()
        ),
        nodes=figures, correlations=correlations(figures),
        edges=graph(shown, prompts, job.graph, stage.order) if job.graph else (), provenance=stage.provenance,
    )  # fmt: skip


def _read(stage: Stage, prompt: OnPrompt) -> PromptRead:
    texts = stage.texts
    of, tokens = prompt.difference, prompt.one.tokens.tolist()
    return PromptRead(
        tokens=tuple(tokens), texts=tuple(texts[token] for token in tokens), first=of.first, second=of.second,
        contrast=(texts[of.first], texts[of.second]), position=of.position, difference=prompt.value(prompt.one),
        counterfactual=None if prompt.counterfactual is None else prompt.value(prompt.counterfactual),
    )  # fmt: skip
