"""A model that reads a prompt while something is added to its activations, several times at once: what it says then."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int

from sae_service.activations.model import LanguageModel

BYTES_AT_ONCE = 1 << 28
"""Of the logits of the runs that a model does at once, about."""
COPIES = 3
"""Of the logits, in float32, that the comparison of two runs holds."""


@dataclass(frozen=True)
class Push:
    """What is added at every position of each run: a strength times a direction, which may be cut over several hook points."""

    directions: Mapping[str, Float[np.ndarray, " width"]]
    strengths: Float[np.ndarray, "runs positions"]

    def part(self, first: int, last: int) -> "Push":
        """Some of its runs."""
        return Push(self.directions, self.strengths[first:last])


@dataclass(frozen=True)
class Said:
    """What the model says in each run.

    Attributes:
        losses: next-token losses in nats.
        kl: of its distribution of the next token from the clean run's, KL(clean ‖ run), in nats.
        logits: of the tokens that are followed, after the last position.
        rows: at the last position, of each hook point that is watched.
    """

    losses: Float[np.ndarray, "runs predicted"]
    kl: Float[np.ndarray, "runs positions"]
    logits: Float[np.ndarray, "runs followed"]
    rows: Mapping[str, Float[np.ndarray, "runs width"]]


class Prompt:
    """A prompt, and what the model says of it undisturbed.

    Attributes:
        clean: one run without a push.
    """

    clean: Said

    def __init__(
        self, model: LanguageModel, tokens: Int[np.ndarray, " positions"], followed: Sequence[int], watched: Sequence[str]
    ) -> None:
        """Reads it once.

        Args:
            followed: tokens whose logits are wanted.
            watched: hook points whose rows are.
        """
        self._model, self.tokens, self._followed, self._watched = model, tokens, list(followed), tuple(watched)
        self._log_probs: torch.Tensor | None = None
        self.clean = self.pushed(Push({}, np.zeros((1, len(tokens)))))

    @property
    def runs_at_once(self) -> int:
        """So many runs have logits of BYTES_AT_ONCE, at least one."""
        return max(1, BYTES_AT_ONCE // (COPIES * 4 * len(self.tokens) * self._model.n_vocab))

    def pushed(self, push: Push) -> Said:
        """What the model says in the runs of a push: not more than `runs_at_once`."""
        rows: dict[str, torch.Tensor] = {}
        edits = {name: partial(_added, push, name) for name in push.directions}
        looks = {name: partial(_noted, rows, name, edits.get(name)) for name in self._watched}
        repeated = np.broadcast_to(self.tokens, (len(push.strengths), len(self.tokens))).copy()
        ids = self._model.ids(repeated)
        with self._model.computing():
            logits = self._model.logits(ids, edits | looks).float()
            log_probs = logits.log_softmax(dim=-1)
            if self._log_probs is None:
                self._log_probs = log_probs[0]
            losses = -log_probs[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
            kl = (self._log_probs.exp() * (self._log_probs - log_probs)).sum(dim=-1)
            followed = logits[:, -1, self._followed]
            watched = {name: _array(row) for name, row in rows.items()}
            return Said(_array(losses), _array(kl), _array(followed), watched)


def next_logits(
    model: LanguageModel, tokens: Int[np.ndarray, "runs positions"], push: Push
) -> Float[np.ndarray, "runs n_vocab"]:
    """The logits after the last position, in runs of other tokens each."""
    with model.computing():
        edits = {name: partial(_added, push, name) for name in push.directions}
        return _array(model.logits(model.ids(tokens), edits)[:, -1])


def _added(push: Push, name: str, rows: torch.Tensor) -> torch.Tensor:
    strengths = torch.from_numpy(push.strengths).to(rows.device, torch.float32)
    direction = torch.from_numpy(push.directions[name]).to(rows.device, torch.float32)
    return (rows.float() + strengths[..., None] * direction).to(rows.dtype)


def _noted(found: dict[str, torch.Tensor], name: str, edit: partial | None, rows: torch.Tensor) -> torch.Tensor | None:
    edited = rows if edit is None else edit(rows)
    found[name] = edited[:, -1]
    return None if edit is None else edited


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()
