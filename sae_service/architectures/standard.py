"""ReLU with an L1 penalty that weighs each latent by its decoder norm.

Source: Anthropic, April 2024 update on training SAEs. No constraint on the decoder: the gradient flows through its
norms. No pre-encoder bias. Resampling is ours to offer, off by default: the source has none.
"""

from typing import Any, Literal

import jax.numpy as jnp
from pydantic import Field

from sae_service.kernels.ops import Ops
from sae_service.numerics import squared_error
from sae_service.sae import parameters_from_inference as start
from sae_service.sae.architecture import Architecture, LossContext, LossOutput, Rows, outcome
from sae_service.sae.coder import Coder, answering, completed, exported, norms, random_coder, with_unit_rows
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.resampling import resample_coder
from sae_service.sae.sites import Sites
from sae_service.schema import BypassConfig, OptimizerConfig, ResamplingConfig

INITIAL_DECODER_NORM = 0.1


class StandardConfig(ResamplingConfig, BypassConfig):
    """ReLU and L1."""

    kind: Literal["standard"] = "standard"  # pyright: ignore[reportIncompatibleVariableOverride]  frozen
    l1_coefficient: float = Field(default=5.0, ge=0, description="Weight of the sum of acts times decoder norms.")


def init(config: StandardConfig, sites: Sites, key: Any) -> Coder:
    """Random decoder directions of norm 0.1, the encoder their transpose, biases 0."""
    return random_coder(key, sites, config.d_sae, INITIAL_DECODER_NORM, config.skip)


def fit_to_rows(config: StandardConfig, parameters: Coder, rows: Rows) -> Coder:
    """A transcoder's decoder, which has no encoder to be the transpose of."""
    return answering(parameters, rows)


def loss(
    config: StandardConfig, parameters: Coder, rows: Rows, context: LossContext, ops: Ops
) -> tuple[LossOutput, Coder]:
    """Mean ‖y - y_hat‖² + λ mean Σ f_i ‖d_i‖."""
    latents = ops.encode(rows.x, parameters.W_enc, parameters.b_enc)
    y_hat = completed(parameters, ops.decode(latents, parameters.W_dec), rows.x)
    penalty = jnp.mean(jnp.sum(latents.acts * latents.of(norms(parameters)), axis=1))
    terms = {
        "mse": squared_error(rows.y, y_hat),
        "sparsity": context.sparsity_scale * config.l1_coefficient * penalty,
    }
    return outcome(terms, rows, y_hat, latents), parameters


def export(config: StandardConfig, parameters: Coder) -> InferenceSAE:
    """Decoder norms folded into the encoder, so that acts are f_i ‖d_i‖; the threshold is 0."""
    coder = with_unit_rows(parameters)
    return exported(coder, coder.b_enc, jnp.zeros(config.d_sae))


def from_inference(config: StandardConfig, sae: InferenceSAE) -> Coder:
    """The SAE as it is. Raises InvalidSpec if it has thresholds or k."""
    return start.plain_coder(sae, start.without_thresholds(start.bypass(config, sae)))


ARCHITECTURE = Architecture(
    config=StandardConfig,
    init=init,
    loss=loss,
    export=export,
    from_inference=from_inference,
    optimizer=OptimizerConfig(lr=5e-5, clip_norm=1.0, lr_decay=0.2, sparsity_warm_up=0.05),
    normalization="sqrt_d_in",
    example=StandardConfig(d_sae=64, l1_coefficient=0.1),
    n_active=lambda config: None,
    fit_to_rows=fit_to_rows,
    resample=resample_coder,
)
