"""TopK: each row keeps its k largest latents; AuxK revives dead ones.

Source: Gao et al. 2024, "Scaling and evaluating sparse autoencoders", arXiv:2406.04093, sections 2.3 and appendices
A.1 to A.3. The decoder bias is subtracted from the input and starts at the geometric median of a sample; the decoder
has unit rows; the encoder starts as its transpose. The per-row standardisation of the published code is left out: one
scalar per hook point takes its place, as for every architecture here. The default learning rate is the published one at
16,384 latents, where the source has it fall with the root of their number; the average of the weights is left out.
"""

from typing import Any, Literal

import jax.numpy as jnp
from pydantic import Field, model_validator

from sae_service.kernels.ops import Ops
from sae_service.numerics import normalized_error
from sae_service.sae import parameters_from_inference as start
from sae_service.sae.architecture import Architecture, LossContext, LossOutput, Rows, outcome
from sae_service.sae.auxk import auxk_error
from sae_service.sae.coder import (
    Coder,
    centred_bias,
    completed,
    exported,
    fitted_to_largest,
    normalized,
    random_coder,
    tangent,
)
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.sites import Sites
from sae_service.schema import BypassConfig, OptimizerConfig, refuse

MULTIPLE = 4
"""Of k, the latents of Multi-TopK."""


class TopKConfig(BypassConfig):
    """k active latents in every row."""

    kind: Literal["topk"] = "topk"  # pyright: ignore[reportIncompatibleVariableOverride]  frozen
    k: float = Field(default=32, ge=1, description="Active latents per row, a whole number.")
    k_aux: int = Field(default=0, ge=0, le=1 << 24, description="Dead latents that reconstruct the residual; 0: half of d_in.")
    aux_coefficient: float = Field(default=1 / 32, ge=0)
    multi_coefficient: float | None = Field(
        default=None, ge=0, description="Weight of the error with 4 k latents (Multi-TopK, published with 1/8); null leaves it out."
    )

    @model_validator(mode="after")
    def _check_k(self) -> "TopKConfig":
        if self.k > self.d_sae:
            refuse(("k",), f"must be at most d_sae ({self.d_sae})", self.k)
        if self.k != int(self.k):
            refuse(("k",), "must be a whole number", self.k)
        return self


def init(config: TopKConfig, sites: Sites, key: Any) -> Coder:
    """A random coder."""
    return random_coder(key, sites, config.d_sae, skip=config.skip)


def fit_to_rows(config: TopKConfig, parameters: Coder, rows: Rows) -> Coder:
    """`b_dec` at the geometric median of the rows, the encoder scaled to their length."""
    return fitted_to_largest(parameters, rows, config.k)


def loss(
    config: TopKConfig, parameters: Coder, rows: Rows, context: LossContext, ops: Ops
) -> tuple[LossOutput, Coder]:
    """Normalised error + AuxK + the error with 4 k latents, if that is wanted."""
    encoder = rows.x, parameters.W_enc, centred_bias(parameters)
    latents = ops.encode_topk(*encoder, config.k)
    y_hat = completed(parameters, ops.decode(latents, parameters.W_dec), rows.x)
    aux = auxk_error(rows.y - y_hat, latents, encoder, parameters.W_dec, context.is_dead, config.k_aux, ops)
    terms = {"error": normalized_error(rows.y, y_hat), "aux": config.aux_coefficient * aux}
    if config.multi_coefficient is not None:
        wider = ops.encode_topk(*encoder, MULTIPLE * config.k)
        y_hat_of_wider = completed(parameters, ops.decode(wider, parameters.W_dec), rows.x)
        terms["multi"] = config.multi_coefficient * normalized_error(rows.y, y_hat_of_wider)
        latents = latents.replace(most=jnp.maximum(latents.most, wider.most))
    return outcome(terms, rows, y_hat, latents), parameters


def n_active(config: TopKConfig) -> float:
    """k, or the larger one of Multi-TopK."""
    return config.k if config.multi_coefficient is None else MULTIPLE * config.k


def export(config: TopKConfig, parameters: Coder) -> InferenceSAE:
    """The pre-encoder bias folded into `b_enc`; k stays."""
    return exported(parameters, centred_bias(parameters), jnp.zeros(config.d_sae), int(config.k))


def from_inference(config: TopKConfig, sae: InferenceSAE) -> Coder:
    """The SAE with decoder rows of norm 1. Raises InvalidSpec if it has another k, or norms that decide what it keeps."""
    return start.centred_coder(sae, start.with_k(start.bypass(config, sae), config.k))


ARCHITECTURE = Architecture(
    config=TopKConfig,
    init=init,
    loss=loss,
    export=export,
    from_inference=from_inference,
    optimizer=OptimizerConfig(lr=2e-4, eps=6.25e-10, clip_norm=1.0, lr_warm_up=1000, lr_decay=0.2),
    normalization="unit_mean_square",
    example=TopKConfig(d_sae=64, k=4),
    n_active=n_active,
    is_even=True,
    fit_to_rows=fit_to_rows,
    constrain_gradients=tangent,
    constrain=normalized,
)
