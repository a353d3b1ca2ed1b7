"""What an SAE writes, put in place of a language model's activations."""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import torch
from jaxtyping import Float

from sae_service.activations.torch_to_jax import to_jax, to_torch
from sae_service.sae.sites import Sites, Widths

Edit = Callable[[torch.Tensor], torch.Tensor | None]
"""Sees the activations of a hook point, [prompts, context_size, width]. What it returns replaces them; None leaves them."""
Reconstruct = Callable[[jax.Array, jax.Array], jax.Array]
"""(x [rows, d_read], y [rows, d_write]) -> y_hat [rows, d_write], one row for each position of a batch."""


def replaced(kept: torch.Tensor, y_hat: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """`y_hat` at the positions that are kept, `y` at the others."""
    return torch.where(kept, y_hat.to(y.dtype), y)


def spliced_while_read(kept: torch.Tensor, sites: Sites, reconstruct: Reconstruct) -> Mapping[str, Edit]:
    """Edits that note what is read, and replace the one hook point that is written, which fires last."""
    seen: dict[str, torch.Tensor] = {}
    (written,) = sites.writes

    def read(rows: torch.Tensor, name: str) -> None:
        seen[name] = rows

    def write(rows: torch.Tensor) -> torch.Tensor:
        seen[written] = rows
        return replaced(kept, reconstructed(seen, sites, reconstruct), rows)

    return {name: partial(read, name=name) for name in sites.reads} | {written: write}


def reconstructed(
    seen: Mapping[str, torch.Tensor], sites: Sites, reconstruct: Reconstruct
) -> Float[torch.Tensor, "prompts context_size d_write"]:
    """What the SAE writes at every position, from the activations at its hook points."""

    def rows(widths: Widths) -> jax.Array:
        return to_jax(torch.cat([seen[name] for name, _ in widths], dim=-1).flatten(0, 1))

    x = rows(sites.read)
    first = seen[sites.writes[0]]
    y_hat = to_torch(reconstruct(x, x if sites.is_autoencoder else rows(sites.write)))
    return y_hat.to(first.device).view(*first.shape[:2], sites.d_write)
