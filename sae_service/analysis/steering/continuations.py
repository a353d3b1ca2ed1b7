"""Text that a steered model writes."""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Bool, Int

from sae_service.activations.model import LanguageModel
from sae_service.activations.pushed import Push, next_logits
from sae_service.analysis.prompts import Reading
from sae_service.analysis.steering.direction import Strengths, edited
from sae_service.analysis.steering.records import Continuation
from sae_service.analysis.steering.scan import overflowing
from sae_service.spec import SteeringSpec

FIELD = "/continuations/coefficients"


def continuations(
    job: SteeringSpec, model: LanguageModel, strengths: Strengths, index: int, one: Reading,
    is_excluded: Bool[np.ndarray, " n_vocab"], stop_if_asked: Callable[[], None],
) -> Iterator[Continuation]:  # fmt: skip
    """How the model goes on with a prompt, at each coefficient. All meet the same chance, so they differ in nothing else.

    Raises Stopped, and InvalidSpec for coefficients at which numbers overflow.
    """
    asked = job.continuations
    assert asked is not None
    coefficients = np.array(asked.coefficients)
    tokens = np.repeat(one.tokens[None], len(coefficients), axis=0)
    where = np.repeat(edited(job, one)[None], len(coefficients), axis=0)
    for step in range(asked.tokens):
        stop_if_asked()
        there = strengths.direction.activations(model, tokens) if strengths.needs_activations else np.zeros(tokens.shape)
        push = Push(strengths.direction.parts, strengths.of(coefficients, there, where))
        logits = next_logits(model, tokens, push).astype(np.float64)
        if not np.isfinite(logits).all():
            raise overflowing(coefficients[int(np.argmin(np.isfinite(logits).all(axis=1)))], FIELD, one.place)
        chosen = _drawn(logits, asked.temperature, np.random.default_rng((asked.seed, index, step)))
        tokens = np.concatenate([tokens, chosen[:, None]], axis=1)
        more = ~is_excluded[chosen] if job.positions == "all" else np.zeros(len(chosen), bool)
        where = np.concatenate([where, more[:, None]], axis=1)
    for coefficient, row in zip(asked.coefficients, tokens[:, len(one.tokens) :].tolist(), strict=True):
        text = model.tokenizer.decode(row) if model.tokenizer is not None else None
        yield Continuation(prompt=index, coefficient=coefficient, tokens=tuple(row), text=text)


def _drawn(logits: np.ndarray, temperature: float, random: np.random.Generator) -> Int[np.ndarray, " runs"]:
    """A token for each run, by the Gumbel trick with the same noise for all; the likeliest at temperature 0."""
    noise = random.gumbel(size=logits.shape[1])
    return np.argmax(logits / temperature + noise if temperature else logits, axis=1).astype(np.int32)
