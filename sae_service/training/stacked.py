"""Trees of equal form, one behind the other in one tree, and the steps of SAEs whose states lie so."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from sae_service.sae.architecture import Architecture
from sae_service.schema import ArchitectureConfig
from sae_service.training.step import Numbers, Served, TrainState, step

Index = Int[Array, ""] | int


@jax.jit
def nth(tree: Any, index: Index) -> Any:
    """A copy of one of the trees."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), tree)


@partial(jax.jit, donate_argnums=(0,))
def with_nth(tree: Any, index: Index, part: Any) -> Any:
    """The tree with `part` in the place of one. `tree` is consumed."""
    return jax.tree.map(lambda leaf, new: jax.lax.dynamic_update_index_in_dim(leaf, new, index, 0), tree, part)


def stacked(parts: Sequence[Any]) -> Any:
    """The trees as one, where the first of them is."""
    tree = _repeated(parts[0], len(parts))
    for index, part in enumerate(parts[1:], start=1):
        tree = with_nth(tree, index, part)
    return tree


@partial(jax.jit, static_argnums=(1,))
def _repeated(part: Any, count: int) -> Any:
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), part)


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(3,))
def looped(
    architecture: Architecture, structure: ArchitectureConfig, n_slots: int | None, states: TrainState, numbers: Numbers,
    served: Served,
) -> TrainState:  # fmt: skip
    """The states after a step of each, one after the other: what they share is the call.

    The states are there twice meanwhile. A loop that changed them where they are would copy all of them for each SAE.
    """
    return jax.lax.map(lambda one: step(architecture, structure, n_slots, one[0], one[1], served), (states, numbers))


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2,))
def vectorised(
    architecture: Architecture, structure: ArchitectureConfig, states: TrainState, numbers: Numbers, served: Served
) -> TrainState:
    """The states after a step of all at once, by the dense operations: the sparse ones choose by what a single SAE has found."""
    return jax.vmap(lambda state, given: step(architecture, structure, None, state, given, served))(states, numbers)
