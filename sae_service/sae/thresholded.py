"""What BatchTopK and Matryoshka share: a coder, and one threshold that follows the batches and takes their place later.

A batch keeps the k largest latents a row on average; each is multiplied by its decoder row's norm first, which is any.
"""

from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import Field, model_validator

from sae_service.kernels.dense import Latents, Ops
from sae_service.pytree import PyTree
from sae_service.sae import parameters_from_inference as start
from sae_service.sae.architecture import Rows
from sae_service.sae.coder import FREE_NORM, Coder, centred_bias, exported, fitted_to_largest, random_coder, with_unit_rows
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.sites import Sites
from sae_service.schema import BypassConfig, OptimizerConfig, refuse

OPTIMIZER = OptimizerConfig(lr=3e-4, clip_norm=1.0, lr_warm_up=1000, lr_decay=0.2)


class ThresholdedConfig(BypassConfig):
    """k active latents per row, on average over a batch, AuxK, and how the threshold moves."""

    k: float = Field(default=32, gt=0, description="Mean number of active latents per row.")
    k_aux: int = Field(default=0, ge=0, le=1 << 24, description="Dead latents that reconstruct the residual; 0: half of d_in.")
    aux_coefficient: float = Field(default=1 / 32, ge=0)
    threshold_rate: float = Field(default=0.01, gt=0, le=1, description="Rate at which the threshold follows the batches.")

    @model_validator(mode="after")
    def _check_k(self) -> Self:
        if self.k > self.d_sae:
            refuse(("k",), f"must be at most d_sae ({self.d_sae})", self.k)
        return self


class ThresholdedCoder(PyTree):
    """A coder and one threshold for all latents. `has_seen` is 1 from the first batch on that moves the threshold."""

    coder: Coder
    threshold: Float[Array, ""]
    has_seen: Float[Array, ""]


def init(config: ThresholdedConfig, sites: Sites, key: Any) -> ThresholdedCoder:
    """A random coder whose threshold has seen no batch; its decoder's norms are free to grow."""
    coder = random_coder(key, sites, config.d_sae, FREE_NORM, config.skip)
    return ThresholdedCoder(coder, jnp.zeros(()), jnp.zeros(()))


def fit_to_rows(config: ThresholdedConfig, parameters: ThresholdedCoder, rows: Rows) -> ThresholdedCoder:
    """`b_dec` at the geometric median of the rows, the encoder scaled to their length."""
    return parameters.replace(coder=fitted_to_largest(parameters.coder, rows, config.k))


def latents_of_batch(
    config: ThresholdedConfig, parameters: ThresholdedCoder, rows: Rows, ops: Ops
) -> tuple[Coder, Latents, ThresholdedCoder]:
    """The coder with unit rows, the latents that the batch keeps, and the parameters with the threshold moved on."""
    coder = with_unit_rows(parameters.coder)
    latents, smallest = ops.encode_topk_of_batch(rows.x, coder.W_enc, centred_bias(coder), config.k)
    return coder, latents, followed(parameters, smallest, config.threshold_rate)


def followed(parameters: ThresholdedCoder, smallest: Array, rate: Array | float) -> ThresholdedCoder:
    """The threshold as the running average of the smallest latent that is kept; a batch that keeps none moves nothing."""
    smallest = jax.lax.stop_gradient(smallest)
    averaged = (1 - rate) * parameters.threshold + rate * smallest
    moved = jnp.where(parameters.has_seen > 0, averaged, smallest)
    keeps_any = smallest > 0
    return parameters.replace(
        threshold=jnp.where(keeps_any, moved, parameters.threshold),
        has_seen=jnp.where(keeps_any, 1.0, parameters.has_seen),
    )


def export(config: ThresholdedConfig, parameters: ThresholdedCoder) -> InferenceSAE:
    """Decoder norms and the subtraction of `b_dec` folded in; the one threshold for every latent."""
    coder = with_unit_rows(parameters.coder)
    return exported(coder, centred_bias(coder), jnp.full(config.d_sae, parameters.threshold))


def from_inference(config: ThresholdedConfig, sae: InferenceSAE) -> ThresholdedCoder:
    """The SAE with decoder rows of norm 1; a threshold of 0 has seen no batch.

    Raises InvalidSpec if it has k or more than one threshold.
    """
    weights = start.with_one_threshold(start.bypass(config, sae))
    threshold: Any = weights["threshold"][0]
    return ThresholdedCoder(start.centred_coder(sae, weights), threshold, start.number(threshold > 0))
