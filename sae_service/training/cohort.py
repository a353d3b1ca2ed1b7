"""SAEs of one structure on the same hook points, which share the compiled step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from sae_service import hosts
from sae_service.architectures import ARCHITECTURES
from sae_service.kernels.choice import n_slots
from sae_service.kernels.precision import products_in
from sae_service.sae.architecture import Architecture
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.sites import Sites
from sae_service.schema import ArchitectureConfig, Moments, Precision
from sae_service.spec import SAESpec
from sae_service.spec.precision import resolved
from sae_service.training import metrics, optimizer, sharded, stacked
from sae_service.training.calibration import calibrated
from sae_service.training.placement import Place
from sae_service.training.step import Numbers, Served, TrainState, resample, step

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

Way = Literal["alone", "looped", "vectorised"]
"""How SAEs of a cohort are stepped: each by a call of its own, or all by one; see `stacked`."""

compiled_step = jax.jit(step, static_argnums=(0, 1, 2), donate_argnums=(3,))
compiled_resample = jax.jit(resample, static_argnums=(0, 1), donate_argnums=(2,))


@dataclass(frozen=True)
class Cohort:
    """What such SAEs have in common. Each is stepped on its own device, by the same program: alone, or with others there.

    Attributes:
        n_slots: of a row's latents in the sparse operations, which a step uses as long as a row depends on no more; None for
            the dense ones.
        precision: of the matrix products of a step.
        shared: the place of an SAE that is split over several devices; such are stepped by the dense operations.
        n_candidates: what each of these devices offers of a row's largest latents; see `sharded.n_candidates`.
        moments: how the optimiser's are kept.
    """

    architecture: Architecture
    structure: ArchitectureConfig
    sites: Sites
    n_slots: int | None
    precision: Precision
    shared: Place | None = None
    n_candidates: int | None = None
    moments: Moments = optimizer.FULL

    def served(self, rows: Mapping[str, Array], place: Place) -> Served:
        """Their batch, of the rows by hook point, where they live."""
        read = tuple(hosts.put(rows[name], place.rows) for name, _ in self.sites.read)
        write = tuple(hosts.put(rows[name], place.rows) for name, _ in self.sites.write)
        return Served(read, None if self.sites.is_autoencoder else write)

    def step(self, state: TrainState, numbers: Numbers, served: Served) -> TrainState:
        """The state after one step. `state` is consumed."""
        with products_in(self.precision):
            if self.shared is not None:
                how = self.shared, self.n_candidates
                return sharded.compiled_step(self.architecture, self.structure, *how, state, numbers, served)
            return compiled_step(self.architecture, self.structure, self.n_slots, state, numbers, served)

    def step_all(self, way: Way, states: TrainState, numbers: Numbers, served: Served) -> TrainState:
        """The states after one step of each, and theirs and the numbers as `stacked`. `states` is consumed."""
        with products_in(self.precision):
            if way == "vectorised":
                return stacked.vectorised(self.architecture, self.structure, states, numbers, served)
            return stacked.looped(self.architecture, self.structure, self.n_slots, states, numbers, served)

    def resample(self, state: TrainState, numbers: Numbers, served: Served, key: Any) -> TrainState:
        """The state with its dead latents started anew. `state` is consumed."""
        return self._where_it_was(compiled_resample(self.architecture, self.structure, state, numbers, served, key))

    def calibrated(
        self, config: ArchitectureConfig, state: TrainState, numbers: Numbers, batches: Sequence[Served]
    ) -> TrainState:
        """The state with its threshold set on those batches; see `calibration`."""
        return calibrated(self.architecture, config, state, numbers, batches)

    def read(self, config: ArchitectureConfig, state: TrainState, numbers: Numbers) -> tuple[TrainState, dict[str, Any]]:
        """The state with an empty window, and what a row of metrics is made of. `state` is consumed."""
        state, found = compiled_reading(self.architecture, config, state, numbers)
        return self._where_it_was(state), found

    def public(self, config: ArchitectureConfig, parameters: Any) -> InferenceSAE:
        """The public form, in units of the rows that the SAE was trained on."""
        return compiled_export(self.architecture, config, self.sites, parameters)

    def _where_it_was(self, state: TrainState) -> TrainState:
        """The state of an SAE that is split, whose parts a compiled function may have left elsewhere."""
        return state if self.shared is None else self.shared.put(state)


def cohort(sae: SAESpec, sites: Sites, place: Place) -> Cohort:
    """The cohort that an SAE belongs to; equal ones are one."""
    architecture, config = ARCHITECTURES[sae.architecture.kind], sae.architecture
    shared, candidates, slots = None, None, slots_of(architecture, config)
    if place.split is not None:
        shared, candidates, slots = place, sharded.n_candidates(architecture, config), None
    precision = resolved(sae.precision, jax.default_backend())
    return Cohort(architecture, config.structure(), sites, slots, precision, shared, candidates, sae.optimizer.moments)


def slots_of(architecture: Architecture, config: ArchitectureConfig) -> int | None:
    """The slots of a row in the sparse operations, None where the dense ones are to be used."""
    if architecture.n_active is None:
        return None
    return n_slots(architecture.n_active(config), config.d_sae, jax.default_backend(), architecture.is_even)


@partial(jax.jit, static_argnums=(0, 1, 2))
def compiled_export(architecture: Architecture, config: ArchitectureConfig, sites: Sites, parameters: Any) -> InferenceSAE:
    """See `Cohort.public`. Compiled for each config: k is part of a public form, not one of its arrays."""
    return architecture.export(config, parameters).replace(sites=sites)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2,))
def compiled_reading(
    architecture: Architecture, config: ArchitectureConfig, state: TrainState, numbers: Numbers
) -> tuple[TrainState, dict[str, Any]]:
    """See `Cohort.read`."""
    last = state.n_steps - 1
    found = {
        "window": state.window,
        "dead_share": jnp.mean(state.tokens_since_fired > numbers.dead_after_tokens),
        "learning_rate": optimizer.learning_rate(numbers.schedule, last),
        "sparsity_scale": optimizer.sparsity_scale(numbers.schedule, last),
        # Nothing else of the public form is computed.
        "threshold_quantiles": jnp.quantile(architecture.export(config, state.parameters).threshold, jnp.array(QUANTILES)),
    }
    emptied = metrics.empty(tuple(state.window.terms), len(state.window.rows))
    return state.replace(window=emptied), found


@jax.jit
def all_finite(state: TrainState) -> Array:
    """Whether every parameter is finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state.parameters)]))
