"""The contract between an architecture and everything else.

An architecture is one file in `architectures/` that builds one `Architecture` from pure functions. Training knows
the functions; evaluation, export and download know only `InferenceSAE`, the one public form.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sae_service.errors import InvalidSpec
from sae_service.kernels.latents import Latents
from sae_service.kernels.ops import Ops
from sae_service.pytree import PyTree
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.sites import Sites
from sae_service.schema import ArchitectureConfig, Normalization, OptimizerConfig


class Rows(PyTree):
    """The rows of a batch: what is read, and what is to be written. For an autoencoder the two are one."""

    x: Float[Array, "batch d_read"]
    y: Float[Array, "batch d_write"]


class LossContext(PyTree):
    """Inputs of a loss beside the rows: the warm-up factor of its sparsity term, the dead latents, and the share of the
    job's steps that are done.
    """

    sparsity_scale: Float[Array, ""]
    is_dead: Bool[Array, " d_sae"]
    progress: Float[Array, ""]


class LossOutput(PyTree):
    """A loss, the named terms that it is the sum of, and what the metrics are computed from.

    Attributes:
        squared_error: sum over the batch of the squared residual norms.
        fired: whether a latent is active in any row.
        n_active: count of active latents, summed over the batch.
        most: how many latents a row depends on, in the row that has the most. If `ops` left some of them out, nothing of this
            may be used.
    """

    total: Float[Array, ""]
    terms: dict[str, Float[Array, ""]]
    squared_error: Float[Array, ""]
    fired: Bool[Array, " d_sae"]
    n_active: Float[Array, ""]
    most: Int[Array, ""]


def outcome(
    terms: dict[str, Float[Array, ""]], rows: Rows, y_hat: Float[Array, "batch d_write"], latents: Latents
) -> LossOutput:
    """The output of a loss that is the sum of `terms`."""
    total = sum(terms.values(), jnp.zeros(()))
    error, most = jnp.sum(jnp.square(rows.y - y_hat)), jnp.asarray(latents.most)
    return LossOutput(total, terms, error, latents.fired(), latents.n_active(), most)


def _cannot_start(config: Any, sae: InferenceSAE) -> Any:
    raise InvalidSpec(f"a {config.kind} SAE cannot start from weights that were trained before", "/initial")


@dataclass(frozen=True)
class Calibration:
    """How one threshold takes the place of what a batch chooses, set so that it chooses as many on average over many rows.

    Attributes:
        k: config -> mean count of active latents a row.
        values: (config, parameters, rows) -> what a batch chooses the largest of, [batch, d_sae]; those above 0 count.
        with_threshold: (parameters, threshold) -> parameters that keep what is above it.
    """

    k: Callable[[Any], float]
    values: Callable[[Any, Any, Rows], Float[Array, "batch d_sae"]]
    with_threshold: Callable[[Any, Float[Array, ""]], Any]


@dataclass(frozen=True)
class Architecture:
    """One way to train an SAE, as pure functions over an immutable pytree of parameters.

    Attributes:
        config: the frozen config; its `kind` is the file's name.
        init: (config, sites, key) -> parameters, float32: a `PyTree` of the architecture's own, or a `Coder`.
        loss: (config, parameters, rows, context, ops) -> (LossOutput, next parameters). No side effect; the second
            value carries what moves without a gradient, such as a batch's threshold.
        export: (config, parameters) -> InferenceSAE in units of the rows that it was trained on.
        from_inference: (config, InferenceSAE) -> parameters, as NumPy arrays, whose export does the same; no device is
            touched. Raises InvalidSpec where there are none, as the default does.
        optimizer: the optimiser's defaults.
        normalization: the default scaling of the rows.
        example: a small config, for documentation and for the shared tests.
        calibration: for one whose latents depend on the other rows of their batch while it trains; None for the others.
        n_active: config -> about how many latents of a row will be active, None if that is left to training; for one whose
            loss depends, in each row, on the latents that `ops` finds and no others. None for the others. No loss asks
            `ops.encode_topk` for more than this.
        is_even: whether every row has exactly that many.
        fit_to_rows: (config, parameters, rows) -> parameters, applied once to the initial parameters with a sample of
            the rows that it is to be trained on.
        resample: (parameters, rows, y_hat, is_dead, key) -> (parameters, touched): dead latents started anew, and a
            tree of masks of what was changed, whose optimiser state is reset. For configs that are a `ResamplingConfig`.
        constrain_gradients: (parameters, gradients) -> gradients, applied before the optimiser.
        constrain: parameters -> parameters, applied after the update.
    """

    config: type[ArchitectureConfig]
    init: Callable[[Any, Sites, Array], Any]
    loss: Callable[[Any, Any, Rows, LossContext, Ops], tuple[LossOutput, Any]]
    export: Callable[[Any, Any], InferenceSAE]
    optimizer: OptimizerConfig
    normalization: Normalization
    example: ArchitectureConfig
    from_inference: Callable[[Any, InferenceSAE], Any] = _cannot_start
    calibration: Calibration | None = None
    n_active: Callable[[Any], float | None] | None = None
    is_even: bool = False
    fit_to_rows: Callable[[Any, Any, Rows], Any] = lambda config, parameters, rows: parameters
    resample: Callable[[Any, Rows, Array, Array, Any], tuple[Any, Any]] | None = None
    constrain_gradients: Callable[[Any, Any], Any] = lambda parameters, gradients: gradients
    constrain: Callable[[Any], Any] = lambda parameters: parameters
