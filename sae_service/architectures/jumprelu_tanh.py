"""JumpReLU with a saturating penalty and a loss that lifts latents which are below their thresholds.

Source: Anthropic, January 2025 update, as restated by public implementations; the original text was not at hand.
penalty: λ Σ tanh(c |f_i| ‖d_i‖); pre-activation loss: λ_P Σ ReLU(θ_i - z_i) ‖d_i‖ for every latent. No constraint on the
decoder: its norms are folded in at export. The gradient by z is that of the jump alone.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import Field

from sae_service.kernels.dense import jumprelu
from sae_service.numerics import row_norms, spread, squared_error
from sae_service.pytree import PyTree
from sae_service.sae import parameters_from_inference
from sae_service.sae.architecture import Architecture, LossContext, LossOutput
from sae_service.sae.coder import Coder, exported, with_unit_rows
from sae_service.sae.inference import InferenceSAE
from sae_service.schema import ArchitectureConfig, OptimizerConfig

FIRING_TOKENS = 10_000
MOST_FIRING = 0.5
FITTING_ROWS = 4096


class JumpReLUTanhConfig(ArchitectureConfig):
    """Thresholds, a tanh penalty and a pre-activation loss."""

    kind: Literal["jumprelu_tanh"] = "jumprelu_tanh"  # pyright: ignore[reportIncompatibleVariableOverride]  frozen
    sparsity_coefficient: float = Field(default=10.0, ge=0, description="Weight of the sum of tanh(c f ‖d‖).")
    tanh_scale: float = Field(default=4.0, gt=0, description="c: the larger, the closer to L0.")
    pre_act_coefficient: float = Field(default=3e-6, ge=0, description="Weight of ReLU(threshold - z) ‖d‖.")
    bandwidth: float = Field(default=2.0, gt=0, description="Width of the window that gives thresholds a gradient.")
    initial_threshold: float = Field(default=0.1, gt=0)


class JumpReLUTanhParameters(PyTree):
    """A coder whose decoder rows have any norm; the threshold is exp(log_threshold)."""

    coder: Coder
    log_threshold: Float[Array, " d_sae"]


def init(config: JumpReLUTanhConfig, d_in: int, key: Any) -> JumpReLUTanhParameters:
    """Decoder entries uniform within 1 / sqrt(d_in), the encoder its transpose times d_in / d_sae, biases 0."""
    bound = d_in**-0.5
    W_dec = jax.random.uniform(key, (config.d_sae, d_in), minval=-bound, maxval=bound)
    coder = Coder(W_dec.T * (d_in / config.d_sae), jnp.zeros(config.d_sae), W_dec, jnp.zeros(d_in))
    return JumpReLUTanhParameters(coder, jnp.full(config.d_sae, jnp.log(config.initial_threshold)))


def fit_to_rows(
    config: JumpReLUTanhConfig, parameters: JumpReLUTanhParameters, rows: Float[Array, "rows d_in"]
) -> JumpReLUTanhParameters:
    """`b_enc` such that each latent fires on 10,000 / d_sae of the rows, at most on half of them."""
    share = min(FIRING_TOKENS / config.d_sae, MOST_FIRING)
    z = spread(rows, FITTING_ROWS) @ parameters.coder.W_enc
    b_enc = jnp.exp(parameters.log_threshold) - jnp.quantile(z, 1 - share, axis=0)
    coder = parameters.coder.replace(b_enc=b_enc)
    return parameters.replace(coder=coder)


def loss(
    config: JumpReLUTanhConfig, parameters: JumpReLUTanhParameters, x: Float[Array, "batch d_in"], context: LossContext
) -> tuple[LossOutput, JumpReLUTanhParameters]:
    """Mean ‖x - x_hat‖² + λ mean Σ tanh(c f_i ‖d_i‖) + λ_P mean Σ ReLU(θ_i - z_i) ‖d_i‖."""
    coder, threshold = parameters.coder, jnp.exp(parameters.log_threshold)
    norms = row_norms(coder.W_dec)
    z = coder.encode(x)
    acts = jumprelu(z, threshold, jnp.asarray(config.bandwidth, x.dtype))
    x_hat = coder.decode(acts)
    penalty = jnp.mean(jnp.sum(jnp.tanh(config.tanh_scale * jnp.abs(acts) * norms), axis=1))
    below = jnp.mean(jnp.sum(jax.nn.relu(threshold - z) * norms, axis=1))
    terms = {
        "mse": squared_error(x, x_hat),
        "sparsity": context.sparsity_scale * config.sparsity_coefficient * penalty,
        "pre_act": config.pre_act_coefficient * below,
    }
    return LossOutput(sum(terms.values(), jnp.zeros(())), terms, x_hat, acts), parameters


def export(config: JumpReLUTanhConfig, parameters: JumpReLUTanhParameters) -> InferenceSAE:
    """Decoder norms folded into the encoder and the thresholds, the pre-encoder bias into `b_enc`."""
    coder = parameters.coder
    return exported(with_unit_rows(coder), jnp.exp(parameters.log_threshold) * row_norms(coder.W_dec))


def from_inference(config: JumpReLUTanhConfig, sae: InferenceSAE) -> JumpReLUTanhParameters:
    """The SAE as it is. Raises InvalidSpec if it has k or a latent without a threshold."""
    weights = parameters_from_inference.with_thresholds(sae)
    return JumpReLUTanhParameters(parameters_from_inference.coder(weights), parameters_from_inference.logarithms(weights))


ARCHITECTURE = Architecture(
    config=JumpReLUTanhConfig,
    init=init,
    loss=loss,
    export=export,
    from_inference=from_inference,
    optimizer=OptimizerConfig(lr=2e-4, clip_norm=1.0, lr_decay=0.2, sparsity_warm_up=0.999),
    normalization="sqrt_d_in",
    example=JumpReLUTanhConfig(d_sae=64, sparsity_coefficient=0.01, bandwidth=0.1, initial_threshold=0.05),
    fit_to_rows=fit_to_rows,
)
