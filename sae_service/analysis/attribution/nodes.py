"""Latents at positions of a prompt, and their effects to the first order."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from sae_service.activations.model import LanguageModel
from sae_service.activations.patched import Moves
from sae_service.analysis.prompted import rows_at
from sae_service.analysis.prompts import Reading
from sae_service.sae.inference import InferenceSAE

Gradients = Mapping[str, Float[np.ndarray, "positions width"]]


@dataclass(frozen=True)
class Nodes:
    """Latents of one SAE at positions, as columns of equal length."""

    sae: InferenceSAE
    latents: Int[np.ndarray, " nodes"]
    positions: Int[np.ndarray, " nodes"]
    activations: Float[np.ndarray, " nodes"]
    patched: Float[np.ndarray, " nodes"]

    def __len__(self) -> int:
        return len(self.latents)

    def chosen(self, which: np.ndarray | slice) -> "Nodes":
        """Some of them."""
        columns = (self.latents, self.positions, self.activations, self.patched)
        return Nodes(self.sae, *(column[which] for column in columns))

    @cached_property
    def moves(self) -> Moves:
        """What a patch of each alone adds to the model's rows: its decoder row, times the change of its activation."""
        rows = np.asarray(self.sae.W_dec)[self.latents] * (self.patched - self.activations)[:, None]
        return Moves(self.positions, _cut(self.sae, rows))

    def effects(self, gradients: Gradients) -> Float[np.ndarray, " nodes"]:
        """Of each to the first order: the product of its move with the gradient at its position."""
        moves = self.moves
        return sum(
            (np.einsum("nd,nd->n", vectors, gradients[name][self.positions]) for name, vectors in moves.vectors.items()),
            np.zeros(len(self)),
        )


def _cut(sae: InferenceSAE, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Rows that an SAE writes, by hook point."""
    assert sae.sites is not None
    cuts = np.cumsum([width for _, width in sae.sites.write])[:-1]
    return dict(zip(sae.sites.writes, np.split(rows.astype(np.float32), cuts, axis=1), strict=True))


@dataclass(frozen=True)
class Written:
    """What an SAE makes of a prompt.

    Attributes:
        error: what is written there in the model, less what the SAE writes.
    """

    activations: Float[np.ndarray, "positions d_sae"]
    error: Float[np.ndarray, "positions d_write"]


def written(model: LanguageModel, sae: InferenceSAE, one: Reading) -> Written:
    """What an SAE makes of a prompt."""
    assert sae.sites is not None
    found = rows_at(model, one.tokens[None], sae.sites.hook_names)
    x, y = (np.concatenate([found[name][0] for name in names], axis=1) for names in (sae.sites.reads, sae.sites.writes))
    activations = sae.encode(jnp.asarray(x))
    return Written(np.asarray(activations), y - np.asarray(sae.decode(activations, jnp.asarray(x))))


@dataclass(frozen=True)
class Sums:
    """Over all latents at all positions that count: how many the patch changes, their effects, that of the error."""

    n: int
    effect: float
    error_effect: float


def strongest(
    sae: InferenceSAE, clean: Written, patch: Written | None, one: Reading, gradients: Gradients, top: int
) -> tuple[Nodes, Sums]:
    """The latents of the largest effects, at the positions that count, and the sums over all.

    Args:
        patch: what the SAE makes of the counterfactual prompt; None: latents are taken away.
    """
    assert sae.sites is not None
    gradient = np.concatenate([gradients[name] for name in sae.sites.writes], axis=1)
    to = np.zeros_like(clean.activations) if patch is None else patch.activations
    change = np.where(one.keep[:, None], to - clean.activations, 0)
    effects = change * np.asarray(gradient @ np.asarray(sae.W_dec).T)
    error = (0 if patch is None else patch.error) - clean.error
    places = np.flatnonzero(effects)
    of_errors = (error * gradient)[one.keep].sum(dtype=np.float64)
    sums = Sums(int(np.count_nonzero(change)), float(effects.sum(dtype=np.float64)), float(of_errors))
    order = np.argsort(-np.abs(effects.reshape(-1)[places]), kind="stable")[:top]
    positions, latents = np.divmod(places[order], effects.shape[1])
    columns = (clean.activations[positions, latents], to[positions, latents])
    return Nodes(sae, latents, positions, *columns), sums
