"""What BatchTopK and Matryoshka share: a coder, and one threshold that takes the place of the batches later.

A batch keeps the k largest latents a row on average; each is multiplied by its decoder row's norm first, which is any.
The threshold is that of the last batch, until it is set on many rows, for a checkpoint or when training has ended.
"""

from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import Field, model_validator

from sae_service.kernels.latents import Latents
from sae_service.kernels.ops import Ops
from sae_service.numerics import exact
from sae_service.pytree import PyTree
from sae_service.sae import parameters_from_inference as start
from sae_service.sae.architecture import Architecture, Calibration, Rows
from sae_service.sae.coder import FREE_NORM, Coder, centred_bias, exported, fitted_to_largest, random_coder, with_unit_rows
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.sites import Sites
from sae_service.schema import BypassConfig, OptimizerConfig, refuse

OPTIMIZER = OptimizerConfig(lr=3e-4, clip_norm=1.0, lr_warm_up=1000, lr_decay=0.2)


class ThresholdedConfig(BypassConfig):
    """k active latents per row, on average over a batch, and AuxK."""

    k: float = Field(default=32, gt=0, description="Mean number of active latents per row.")
    k_aux: int = Field(default=0, ge=0, le=1 << 24, description="Dead latents that reconstruct the residual; 0: half of d_in.")
    aux_coefficient: float = Field(default=1 / 32, ge=0)

    @model_validator(mode="after")
    def _check_k(self) -> Self:
        if self.k > self.d_sae:
            refuse(("k",), f"must be at most d_sae ({self.d_sae})", self.k)
        return self


class ThresholdedCoder(PyTree):
    """A coder and one threshold for all latents."""

    coder: Coder
    threshold: Float[Array, ""]


def init(config: ThresholdedConfig, sites: Sites, key: Any) -> ThresholdedCoder:
    """A random coder with a threshold of 0; its decoder's norms are free to grow."""
    coder = random_coder(key, sites, config.d_sae, FREE_NORM, config.skip)
    return ThresholdedCoder(coder, jnp.zeros(()))


def fit_to_rows(config: ThresholdedConfig, parameters: ThresholdedCoder, rows: Rows) -> ThresholdedCoder:
    """`b_dec` at the geometric median of the rows, the encoder scaled to their length."""
    return parameters.replace(coder=fitted_to_largest(parameters.coder, rows, config.k))


def latents_of_batch(
    config: ThresholdedConfig, parameters: ThresholdedCoder, rows: Rows, ops: Ops
) -> tuple[Coder, tuple[Array, Array, Array], Latents, ThresholdedCoder]:
    """The coder with unit rows, its encoder with x, the latents that the batch keeps, and the parameters with the smallest as
    their threshold.
    """
    coder = with_unit_rows(parameters.coder)
    encoder = rows.x, coder.W_enc, centred_bias(coder)
    latents, smallest = ops.encode_topk_of_batch(*encoder, config.k)
    return coder, encoder, latents, parameters.replace(threshold=jax.lax.stop_gradient(smallest))


def values(config: ThresholdedConfig, parameters: ThresholdedCoder, rows: Rows) -> Float[Array, "batch d_sae"]:
    """What a batch chooses the largest of."""
    coder = with_unit_rows(parameters.coder)
    return exact(rows.x, coder.W_enc) + centred_bias(coder)


def with_threshold(parameters: ThresholdedCoder, threshold: Float[Array, ""]) -> ThresholdedCoder:
    """The parameters with another threshold."""
    return parameters.replace(threshold=threshold)


def export(config: ThresholdedConfig, parameters: ThresholdedCoder) -> InferenceSAE:
    """Decoder norms and the subtraction of `b_dec` folded in; the one threshold for every latent."""
    coder = with_unit_rows(parameters.coder)
    return exported(coder, centred_bias(coder), jnp.full(config.d_sae, parameters.threshold))


def from_inference(config: ThresholdedConfig, sae: InferenceSAE) -> ThresholdedCoder:
    """The SAE with decoder rows of norm 1.

    Raises InvalidSpec if it has k or more than one threshold.
    """
    weights = start.with_one_threshold(start.bypass(config, sae))
    return ThresholdedCoder(start.centred_coder(sae, weights), start.number(weights["threshold"][0]))


def thresholded(loss: Callable[..., Any], example: ThresholdedConfig) -> Architecture:
    """The architecture of such a coder with this loss; `example` is one of its configs."""
    return Architecture(
        config=type(example),
        init=init,
        loss=loss,
        export=export,
        from_inference=from_inference,
        optimizer=OPTIMIZER,
        normalization="sqrt_d_in",
        example=example,
        calibration=Calibration(lambda config: config.k, values, with_threshold),
        n_active=lambda config: config.k,
        fit_to_rows=fit_to_rows,
    )
