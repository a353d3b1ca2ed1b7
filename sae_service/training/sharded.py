"""The step of an SAE that is split over several devices, as one program for all of them."""

from functools import partial

import jax

from sae_service.kernels import sharded
from sae_service.kernels.ops import Ops
from sae_service.sae.architecture import Architecture
from sae_service.schema import ArchitectureConfig
from sae_service.training.placement import Place
from sae_service.training.step import Numbers, Served, TrainState, step


@partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=(4,))
def compiled_step(
    architecture: Architecture, structure: ArchitectureConfig, place: Place, n_candidates: int | None, state: TrainState,
    numbers: Numbers, served: Served,
) -> TrainState:  # fmt: skip
    """The state after one step, where it was. See `step` and `n_candidates`."""
    after = step(architecture, structure, None, state, numbers, served, ops_of(place, n_candidates))
    return jax.lax.with_sharding_constraint(after, place.of(after))


def ops_of(place: Place, n_candidates: int | None) -> Ops:
    """The operations by which an SAE is stepped at a place where it is split."""
    assert isinstance(place.mesh, jax.sharding.Mesh)
    return sharded.by_rows(place.mesh) if place.split == "batch" else sharded.by_latents(place.mesh, n_candidates)


def n_candidates(architecture: Architecture, config: ArchitectureConfig) -> int | None:
    """A power of two that is no smaller than what a row keeps of the latents, so that SAEs with other k share their programs;
    None where that is left to training.
    """
    n_active = None if architecture.n_active is None else architecture.n_active(config)
    return None if n_active is None else 1 << (int(-(-n_active // 1)) - 1).bit_length()
