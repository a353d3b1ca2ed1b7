"""A difference of logits with one row of each run moved: activation patching."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int

from sae_service.activations.difference import Difference
from sae_service.activations.model import LanguageModel


@dataclass(frozen=True)
class Moves:
    """What is added in each run: at one position a vector, which may be cut over several hook points."""

    positions: Int[np.ndarray, " runs"]
    vectors: Mapping[str, Float[np.ndarray, "runs width"]]

    def part(self, first: int, last: int) -> "Moves":
        """Some of its runs."""
        return Moves(self.positions[first:last], {name: vectors[first:last] for name, vectors in self.vectors.items()})

    def at(self, name: str, rows: Float[torch.Tensor, "runs positions width"]) -> torch.Tensor:
        """What is added at a hook point: zeros at all positions but one."""
        added = torch.zeros_like(rows, dtype=torch.float32)
        runs, positions = torch.arange(len(rows), device=rows.device), torch.from_numpy(self.positions).to(rows.device)
        added[runs, positions] = torch.from_numpy(self.vectors[name]).to(rows.device, torch.float32)
        return added


def repeated(model: LanguageModel, tokens: Int[np.ndarray, " positions"], n: int) -> Int[torch.Tensor, "runs positions"]:
    """A prompt so many times."""
    return model.ids(np.broadcast_to(tokens, (n, len(tokens))).copy())


def differences(
    model: LanguageModel, tokens: Int[np.ndarray, " positions"], difference: Difference, moves: Moves
) -> Float[np.ndarray, " runs"]:
    """The difference in each run."""
    rows: dict[str, torch.Tensor] = {}

    def look(values: torch.Tensor, name: str) -> torch.Tensor:
        if name in moves.vectors:
            values = (values.float() + moves.at(name, values)).to(values.dtype)
        rows[name] = values
        return values

    names = dict.fromkeys((*moves.vectors, *difference.watched))
    ids = repeated(model, tokens, len(moves.positions))
    with model.computing():
        logits = model.logits(ids, {name: partial(look, name=name) for name in names})
        return difference.of(logits, rows).cpu().numpy()
