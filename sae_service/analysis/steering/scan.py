"""The scan: what a model says of a prompt at each coefficient."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from sae_service.activations.model import LanguageModel
from sae_service.activations.pushed import Prompt, Push, Said
from sae_service.analysis.prompts import Reading
from sae_service.analysis.steering.direction import Strengths, edited
from sae_service.analysis.steering.parts import Split
from sae_service.errors import InvalidSpec
from sae_service.spec import SteeringSpec


@dataclass(frozen=True)
class OfPrompt:
    """What was found on one prompt. Losses are in nats, and means over the positions from the first edited one on that count.

    Attributes:
        there: how much of the direction there is, by position, in the undisturbed run.
        clean_loss: NaN if no token comes after an edited one.
        clean_logits: of the tokens that are followed, after the last position.
        logits: their changes.
        clean_difference: of the logits of the contrast.
        total: its change.
        parts: of that change.
    """

    there: Float[np.ndarray, " positions"]
    clean_loss: float
    clean_logits: Float[np.ndarray, " followed"]
    loss: Float[np.ndarray, " coefficients"]
    kl: Float[np.ndarray, " coefficients"]
    logits: Float[np.ndarray, "coefficients followed"]
    clean_difference: float
    total: Float[np.ndarray, " coefficients"]
    parts: Float[np.ndarray, "coefficients parts"]


@dataclass(frozen=True)
class Scan:
    """What is done on each prompt.

    Attributes:
        followed: tokens; those of the contrast are the last two, if there is one.
    """

    job: SteeringSpec
    model: LanguageModel
    strengths: Strengths
    followed: Sequence[int]
    split: Split | None

    def on(self, one: Reading, stop_if_asked: Callable[[], None]) -> OfPrompt:
        """Reads a prompt at every coefficient. Raises Stopped, and InvalidSpec for coefficients at which numbers overflow."""
        prompt = Prompt(self.model, one.tokens, self.followed, self.split.watched if self.split else ())
        there, where = self.strengths.direction.activations(self.model, one.tokens[None])[0], edited(self.job, one)
        coefficients = np.array(self.job.scanned)
        push = Push(self.strengths.direction.parts, self.strengths.of(coefficients, there[None], where[None]))
        counted = one.keep & (np.arange(len(where)) >= np.flatnonzero(where)[0])
        found = list[tuple[np.ndarray, ...]]()
        for first in range(0, len(coefficients), prompt.runs_at_once):
            stop_if_asked()
            part = push.part(first, first + prompt.runs_at_once)
            said = prompt.pushed(part)
            self._check_finite(said, coefficients[first:], one)
            found.append(self._figures(prompt.clean, said, part, counted))
        loss, kl, logits, total, parts = (np.concatenate(figures) for figures in zip(*found, strict=True))
        clean_loss = _mean(prompt.clean.losses, counted[:-1])[0]
        before = prompt.clean.logits[0].astype(np.float64)
        difference = float(before[-2] - before[-1]) if self.split else 0.0
        return OfPrompt(there, float(clean_loss), before, loss, kl, logits, difference, total, parts)

    def _figures(self, clean: Said, said: Said, push: Push, counted: np.ndarray) -> tuple[np.ndarray, ...]:
        logits = said.logits.astype(np.float64) - clean.logits
        total = logits[:, -2] - logits[:, -1] if self.split else np.zeros(len(logits))
        parts = self.split(clean, said, push, total) if self.split else np.zeros((len(logits), 0))
        return _mean(said.losses, counted[:-1]), _mean(said.kl, counted), logits, total, parts

    @staticmethod
    def _check_finite(said: Said, coefficients: np.ndarray, one: Reading) -> None:
        figures = (said.losses, said.kl, said.logits, *said.rows.values())
        is_finite = np.all([np.isfinite(figure).all(axis=1) for figure in figures], axis=0)
        if not is_finite.all():
            coefficient = coefficients[int(np.argmin(is_finite))]
            raise overflowing(coefficient, "/coefficients", one.place)


def overflowing(coefficient: float, field: str, prompt: str) -> InvalidSpec:
    """The error for a coefficient that is too large for the numbers of the model."""
    message = f"at the coefficient {coefficient:g} what the model computes of {prompt} is no finite number"
    return InvalidSpec(message, field, "Take smaller ones, or a model in float32.")


def _mean(figures: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """The mean over the positions that count; NaN if there are none."""
    if not counted.any():
        return np.full(len(figures), np.nan)
    return figures[:, counted].mean(axis=1, dtype=np.float64)
