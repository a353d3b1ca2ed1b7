"""BatchTopK: a batch keeps the k largest latents per row on average; one learned threshold takes their place later.

Source: Bussmann et al. 2024, "BatchTopK Sparse Autoencoders", arXiv:2412.06410, section 3. The threshold is the
average over batches of the smallest latent that was kept. Unlike in the published code, `b_enc` is used in the
encoder, rows are not standardised one by one, a latent is dead after tokens, not batches, and decoder rows are not held
at norm 1: a latent is multiplied by its row's norm instead, which is the same SAE, learned faster (DECISIONS 22).
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import Field, model_validator

from sae_service.kernels.selection import keep_largest_of_batch
from sae_service.numerics import normalized_error
from sae_service.sae import parameters_from_inference
from sae_service.sae.architecture import Architecture, LossContext, LossOutput
from sae_service.sae.auxk import auxk_error
from sae_service.sae.coder import exported, fitted_to_largest, with_unit_rows
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.thresholded import ThresholdedCoder, follow_threshold, random_thresholded_coder
from sae_service.schema import ArchitectureConfig, OptimizerConfig, refuse


class BatchTopKConfig(ArchitectureConfig):
    """k active latents per row, on average over a batch."""

    kind: Literal["batchtopk"] = "batchtopk"  # pyright: ignore[reportIncompatibleVariableOverride]  frozen
    k: float = Field(default=32, gt=0, description="Mean number of active latents per row.")
    k_aux: int = Field(default=0, ge=0, description="Dead latents that reconstruct the residual; 0: half of d_in.")
    aux_coefficient: float = Field(default=1 / 32, ge=0)
    threshold_rate: float = Field(default=0.01, gt=0, le=1, description="Rate at which the threshold follows the batches.")

    @model_validator(mode="after")
    def _check_k(self) -> "BatchTopKConfig":
        if self.k > self.d_sae:
            refuse(("k",), f"must be at most d_sae ({self.d_sae})", self.k)
        return self


def init(config: BatchTopKConfig, d_in: int, key: Any) -> ThresholdedCoder:
    """A random coder."""
    return random_thresholded_coder(key, d_in, config.d_sae)


def fit_to_rows(
    config: BatchTopKConfig, parameters: ThresholdedCoder, rows: Float[Array, "rows d_in"]
) -> ThresholdedCoder:
    """`b_dec` at the geometric median of the rows, the encoder scaled to their length."""
    return parameters.replace(coder=fitted_to_largest(parameters.coder, rows, config.k))


def loss(
    config: BatchTopKConfig, parameters: ThresholdedCoder, x: Float[Array, "batch d_in"], context: LossContext
) -> tuple[LossOutput, ThresholdedCoder]:
    """Normalised error + AuxK; the second value carries the threshold on."""
    coder = with_unit_rows(parameters.coder)
    z = coder.encode(x)
    acts, smallest = keep_largest_of_batch(jax.nn.relu(z), config.k)
    x_hat = coder.decode(acts)
    k_aux = config.k_aux or x.shape[1] // 2
    terms = {
        "error": normalized_error(x, x_hat),
        "aux": config.aux_coefficient * auxk_error(x - x_hat, z, acts, coder.W_dec, context.is_dead, k_aux),
    }
    threshold = follow_threshold(parameters.threshold, smallest, config.threshold_rate)
    moved = parameters.replace(threshold=threshold)
    return LossOutput(sum(terms.values(), jnp.zeros(())), terms, x_hat, acts), moved


def export(config: BatchTopKConfig, parameters: ThresholdedCoder) -> InferenceSAE:
    """The pre-encoder bias folded into `b_enc`; the one threshold for every latent."""
    threshold = jnp.full(config.d_sae, jnp.maximum(parameters.threshold, 0))
    return exported(with_unit_rows(parameters.coder), threshold)


def from_inference(config: BatchTopKConfig, sae: InferenceSAE) -> ThresholdedCoder:
    """The SAE with decoder rows of norm 1. Raises InvalidSpec if it has k or more than one threshold."""
    return parameters_from_inference.thresholded_coder(parameters_from_inference.with_one_threshold(sae))


ARCHITECTURE = Architecture(
    config=BatchTopKConfig,
    init=init,
    loss=loss,
    export=export,
    from_inference=from_inference,
    optimizer=OptimizerConfig(lr=3e-4, clip_norm=1.0, lr_warm_up=1000, lr_decay=0.2),
    normalization="sqrt_d_in",
    example=BatchTopKConfig(d_sae=64, k=4),
    chooses_over_the_batch=True,
    fit_to_rows=fit_to_rows,
)
