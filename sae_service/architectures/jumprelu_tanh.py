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

from sae_service.kernels.ops import Ops
from sae_service.numerics import exact, spread, squared_error
from sae_service.pytree import PyTree
from sae_service.sae import parameters_from_inference as start
from sae_service.sae.architecture import Architecture, LossContext, LossOutput, Rows, outcome
from sae_service.sae.coder import Coder, answering, centred_bias, completed, exported, norms, with_unit_rows
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.sites import Sites
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


def init(config: JumpReLUTanhConfig, sites: Sites, key: Any) -> JumpReLUTanhParameters:
    """Decoder entries uniform within 1 / sqrt(d_in), the encoder its transpose times d_in / d_sae, biases 0."""
    bound = sites.d_write**-0.5

    def drawn(key: Any, width: int) -> Float[Array, "d_sae width"]:
        return jax.random.uniform(key, (config.d_sae, width), minval=-bound, maxval=bound)

    W_dec = drawn(key, sites.d_write)
    W_enc = W_dec if sites.is_autoencoder else drawn(jax.random.fold_in(key, 1), sites.d_read)
    coder = Coder(W_enc.T * (sites.d_read / config.d_sae), jnp.zeros(config.d_sae), W_dec, jnp.zeros(sites.d_write), sites=sites)
    return JumpReLUTanhParameters(coder, jnp.full(config.d_sae, jnp.log(config.initial_threshold)))


def fit_to_rows(config: JumpReLUTanhConfig, parameters: JumpReLUTanhParameters, rows: Rows) -> JumpReLUTanhParameters:
    """`b_enc` such that each latent fires on 10,000 / d_sae of the rows, at most on half of them."""
    share = min(FIRING_TOKENS / config.d_sae, MOST_FIRING)
    coder = answering(parameters.coder, rows)
    z = exact(spread(rows.x, FITTING_ROWS), coder.W_enc)
    b_enc = jnp.exp(parameters.log_threshold) - jnp.quantile(z, 1 - share, axis=0)
    return parameters.replace(coder=coder.replace(b_enc=b_enc))


def loss(
    config: JumpReLUTanhConfig, parameters: JumpReLUTanhParameters, rows: Rows, context: LossContext, ops: Ops
) -> tuple[LossOutput, JumpReLUTanhParameters]:
    """Mean ‖y - y_hat‖² + λ mean Σ tanh(c f_i ‖d_i‖) + λ_P mean Σ ReLU(θ_i - z_i) ‖d_i‖."""
    coder, threshold = parameters.coder, jnp.exp(parameters.log_threshold)
    bandwidth, found = jnp.asarray(config.bandwidth, rows.x.dtype), norms(coder)
    latents = ops.encode_above(rows.x, coder.W_enc, centred_bias(coder), threshold, bandwidth)
    y_hat = completed(coder, ops.decode(latents, coder.W_dec), rows.x)
    penalty = jnp.mean(jnp.sum(jnp.tanh(config.tanh_scale * jnp.abs(latents.acts) * found), axis=1))
    below = jnp.mean(jnp.sum(jax.nn.relu(threshold - latents.z) * found, axis=1))
    terms = {
        "mse": squared_error(rows.y, y_hat),
        "sparsity": context.sparsity_scale * config.sparsity_coefficient * penalty,
        "pre_act": config.pre_act_coefficient * below,
    }
    return outcome(terms, rows, y_hat, latents), parameters


def export(config: JumpReLUTanhConfig, parameters: JumpReLUTanhParameters) -> InferenceSAE:
    """Decoder norms folded into the encoder and the thresholds, the pre-encoder bias into `b_enc`."""
    coder = with_unit_rows(parameters.coder)
    return exported(coder, centred_bias(coder), jnp.exp(parameters.log_threshold) * norms(parameters.coder))


def from_inference(config: JumpReLUTanhConfig, sae: InferenceSAE) -> JumpReLUTanhParameters:
    """The SAE as it is. Raises InvalidSpec if it has k or a latent without a threshold."""
    weights = start.with_thresholds(start.bypass(config, sae))
    return JumpReLUTanhParameters(start.centred_coder(sae, weights), start.logarithms(weights))


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
