"""Matryoshka BatchTopK: nested prefixes of the latents must each reconstruct alone, so that the first stay general.

Source: Bussmann et al. 2025, "Learning Multi-Level Features with Matryoshka Sparse Autoencoders", arXiv:2503.17547,
section 3. The latents are chosen as in BatchTopK, over all of them together, with decoder rows of any norm. Where public
code differs, this was chosen: the error is the mean over the prefixes, each counted once (SAEBench's averages twice, which
leaves AuxK 5 times the weight), and b_dec alone is not counted as a prefix.
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


class MatryoshkaConfig(ArchitectureConfig):
    """Nested prefixes, and k active latents per row on average over a batch."""

    kind: Literal["matryoshka"] = "matryoshka"  # pyright: ignore[reportIncompatibleVariableOverride]  frozen
    k: float = Field(default=32, gt=0, description="Mean number of active latents per row.")
    widths: tuple[int, ...] = Field(
        default=(), description="Lengths of the prefixes, rising to d_sae. Default: d_sae / 16, / 8, / 4, / 2 and d_sae."
    )
    k_aux: int = Field(default=0, ge=0, description="Dead latents that reconstruct the residual; 0: half of d_in.")
    aux_coefficient: float = Field(default=1 / 32, ge=0)
    threshold_rate: float = Field(default=0.01, gt=0, le=1, description="Rate at which the threshold follows the batches.")

    @model_validator(mode="after")
    def _check_k(self) -> "MatryoshkaConfig":
        if self.k > self.d_sae:
            refuse(("k",), f"must be at most d_sae ({self.d_sae})", self.k)
        if self.widths and (list(self.widths) != sorted({*self.widths, self.d_sae}) or self.widths[0] < 1):
            refuse(("widths",), f"must rise from at least 1 to d_sae ({self.d_sae})", self.widths)
        return self

    def prefixes(self) -> tuple[int, ...]:
        """The lengths of the prefixes."""
        return self.widths or tuple(sorted({max(1, self.d_sae // share) for share in (16, 8, 4, 2, 1)}))


def init(config: MatryoshkaConfig, d_in: int, key: Any) -> ThresholdedCoder:
    """A random coder."""
    return random_thresholded_coder(key, d_in, config.d_sae)


def fit_to_rows(
    config: MatryoshkaConfig, parameters: ThresholdedCoder, rows: Float[Array, "rows d_in"]
) -> ThresholdedCoder:
    """`b_dec` at the geometric median of the rows, the encoder scaled to their length."""
    return parameters.replace(coder=fitted_to_largest(parameters.coder, rows, config.k))


def loss(
    config: MatryoshkaConfig, parameters: ThresholdedCoder, x: Float[Array, "batch d_in"], context: LossContext
) -> tuple[LossOutput, ThresholdedCoder]:
    """Mean normalised error of the prefixes + AuxK; the second value carries the threshold on."""
    coder = with_unit_rows(parameters.coder)
    z = coder.encode(x)
    acts, smallest = keep_largest_of_batch(jax.nn.relu(z), config.k)
    errors, x_hat, start = [], jnp.broadcast_to(coder.b_dec, x.shape), 0
    for end in config.prefixes():
        x_hat = x_hat + acts[:, start:end] @ coder.W_dec[start:end]
        errors.append(normalized_error(x, x_hat))
        start = end
    k_aux = config.k_aux or x.shape[1] // 2
    terms = {
        "error": sum(errors, jnp.zeros(())) / len(errors),
        "aux": config.aux_coefficient * auxk_error(x - x_hat, z, acts, coder.W_dec, context.is_dead, k_aux),
    }
    threshold = follow_threshold(parameters.threshold, smallest, config.threshold_rate)
    moved = parameters.replace(threshold=threshold)
    return LossOutput(sum(terms.values(), jnp.zeros(())), terms, x_hat, acts), moved


def export(config: MatryoshkaConfig, parameters: ThresholdedCoder) -> InferenceSAE:
    """The pre-encoder bias folded into `b_enc`; the one threshold for every latent."""
    threshold = jnp.full(config.d_sae, jnp.maximum(parameters.threshold, 0))
    return exported(with_unit_rows(parameters.coder), threshold)


def from_inference(config: MatryoshkaConfig, sae: InferenceSAE) -> ThresholdedCoder:
    """The SAE with decoder rows of norm 1. Raises InvalidSpec if it has k or more than one threshold."""
    return parameters_from_inference.thresholded_coder(parameters_from_inference.with_one_threshold(sae))


ARCHITECTURE = Architecture(
    config=MatryoshkaConfig,
    init=init,
    loss=loss,
    export=export,
    from_inference=from_inference,
    optimizer=OptimizerConfig(lr=3e-4, clip_norm=1.0, lr_warm_up=1000, lr_decay=0.2),
    normalization="sqrt_d_in",
    example=MatryoshkaConfig(d_sae=64, k=4),
    chooses_over_the_batch=True,
    fit_to_rows=fit_to_rows,
)
