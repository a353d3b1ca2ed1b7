"""ReLU with an L1 penalty that weighs each latent by its decoder norm.

Source: Anthropic, April 2024 update on training SAEs. No constraint on the decoder: the gradient flows through its
norms. No pre-encoder bias. Resampling is ours to offer, off by default: the source has none.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import Field

from sae_service.numerics import random_rows, row_norms, squared_error, unit_rows
from sae_service.pytree import PyTree
from sae_service.sae import parameters_from_inference
from sae_service.sae.architecture import Architecture, LossContext, LossOutput
from sae_service.sae.coder import Coder
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.resampling import resample_coder
from sae_service.schema import OptimizerConfig, ResamplingConfig

INITIAL_DECODER_NORM = 0.1


class StandardConfig(ResamplingConfig):
    """ReLU and L1."""

    kind: Literal["standard"] = "standard"  # pyright: ignore[reportIncompatibleVariableOverride]  frozen
    l1_coefficient: float = Field(default=5.0, ge=0, description="Weight of the sum of acts times decoder norms.")


class StandardParameters(PyTree):
    """Encoder, decoder and their biases."""

    W_enc: Float[Array, "d_in d_sae"]
    b_enc: Float[Array, " d_sae"]
    W_dec: Float[Array, "d_sae d_in"]
    b_dec: Float[Array, " d_in"]


def init(config: StandardConfig, d_in: int, key: Any) -> StandardParameters:
    """Random decoder directions of norm 0.1, the encoder their transpose, biases 0."""
    W_dec = INITIAL_DECODER_NORM * random_rows(key, config.d_sae, d_in)
    return StandardParameters(W_dec.T, jnp.zeros(config.d_sae), W_dec, jnp.zeros(d_in))


def loss(
    config: StandardConfig, parameters: StandardParameters, x: Float[Array, "batch d_in"], context: LossContext
) -> tuple[LossOutput, StandardParameters]:
    """Mean ‖x - x_hat‖² + λ mean Σ f_i ‖d_i‖."""
    acts = jax.nn.relu(x @ parameters.W_enc + parameters.b_enc)
    x_hat = acts @ parameters.W_dec + parameters.b_dec
    penalty = jnp.mean(acts @ row_norms(parameters.W_dec))
    terms = {
        "mse": squared_error(x, x_hat),
        "sparsity": context.sparsity_scale * config.l1_coefficient * penalty,
    }
    return LossOutput(terms["mse"] + terms["sparsity"], terms, x_hat, acts), parameters


def resample(
    parameters: StandardParameters, x: Array, x_hat: Array, is_dead: Array, key: Any
) -> tuple[StandardParameters, StandardParameters]:
    """Dead latents started anew."""
    coder = Coder(parameters.W_enc, parameters.b_enc, parameters.W_dec, parameters.b_dec)
    fresh, touched = resample_coder(coder, x, x_hat, is_dead, key)
    return _of_coder(fresh), _of_coder(touched)


def _of_coder(coder: Coder) -> StandardParameters:
    return StandardParameters(coder.W_enc, coder.b_enc, coder.W_dec, coder.b_dec)


def export(config: StandardConfig, parameters: StandardParameters) -> InferenceSAE:
    """Decoder norms folded into the encoder, so that acts are f_i ‖d_i‖; the threshold is 0."""
    norms = row_norms(parameters.W_dec)
    return InferenceSAE(
        W_enc=parameters.W_enc * norms,
        b_enc=parameters.b_enc * norms,
        W_dec=unit_rows(parameters.W_dec),
        b_dec=parameters.b_dec,
        threshold=jnp.zeros(config.d_sae),
    )


def from_inference(config: StandardConfig, sae: InferenceSAE) -> StandardParameters:
    """The SAE as it is. Raises InvalidSpec if it has thresholds or k."""
    weights: Any = parameters_from_inference.without_thresholds(sae)
    return StandardParameters(**{name: weights[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")})


ARCHITECTURE = Architecture(
    config=StandardConfig,
    init=init,
    loss=loss,
    export=export,
    from_inference=from_inference,
    optimizer=OptimizerConfig(lr=5e-5, clip_norm=1.0, lr_decay=0.2, sparsity_warm_up=0.05),
    normalization="sqrt_d_in",
    example=StandardConfig(d_sae=64, l1_coefficient=0.1),
    resample=resample,
)
