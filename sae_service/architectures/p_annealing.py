"""p-annealing: an Lp penalty whose p falls from 1, so that training begins convex and ends close to L0.

Source: Karvonen et al. 2024, "Measuring Progress in Dictionary Learning for Language Model Interpretability with Board
Game Models", arXiv:2408.00113, section 4. p falls in equal steps at equal distances, the last of them one distance before
the end, so that the job ends with `p_end`, which dictionary_learning does not reach; at each of them the coefficient is
multiplied so that the penalty of recent batches stays what it was. "Recent" is a running average here, not a list of ten
batches. In a job that goes on with more steps p does not rise again.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import Field

from sae_service.kernels.ops import Ops
from sae_service.numerics import squared_error
from sae_service.pytree import PyTree
from sae_service.sae import parameters_from_inference as start
from sae_service.sae.architecture import Architecture, LossContext, LossOutput, Rows, outcome
from sae_service.sae.coder import (
    Coder,
    answering,
    centred_bias,
    completed,
    exported,
    normalized,
    random_coder,
    tangent,
    with_median,
)
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.resampling import resample_coder
from sae_service.sae.sites import Sites
from sae_service.schema import OptimizerConfig, ResamplingConfig

FALLS = 10
AVERAGING_RATE = 0.1
SMALLEST = 1e-6


class PAnnealingConfig(ResamplingConfig):
    """ReLU and an Lp penalty with falling p."""

    kind: Literal["p_annealing"] = "p_annealing"  # pyright: ignore[reportIncompatibleVariableOverride]  frozen
    lp_coefficient: float = Field(default=0.012, ge=0, description="Weight of the sum of acts to the power p, while p is 1.")
    p_end: float = Field(default=0.2, gt=0, le=1, description="The last p.")
    anneal_start: float = Field(default=0.2, ge=0, lt=1, description="Share of the job before p begins to fall.")


class PAnnealingParameters(PyTree):
    """A coder, and what the falling p remembers: how often it has fallen, the factor on the coefficient, and the
    running averages of the penalty with the present p and with the next one.
    """

    coder: Coder
    falls: Float[Array, ""]
    factor: Float[Array, ""]
    penalty: Float[Array, ""]
    next_penalty: Float[Array, ""]


def init(config: PAnnealingConfig, sites: Sites, key: Any) -> PAnnealingParameters:
    """A random coder, p = 1."""
    coder = random_coder(key, sites, config.d_sae)
    return PAnnealingParameters(coder, jnp.zeros(()), jnp.ones(()), jnp.zeros(()), jnp.zeros(()))


def fit_to_rows(config: PAnnealingConfig, parameters: PAnnealingParameters, rows: Rows) -> PAnnealingParameters:
    """`b_dec` at the geometric median of the rows."""
    return parameters.replace(coder=answering(with_median(parameters.coder, rows), rows))


def power_penalty(acts: Float[Array, "batch d_sae"], p: Float[Array, ""]) -> Float[Array, ""]:
    """Mean over rows of the sum of acts^p; without a gradient where nothing fires."""
    positive = jnp.where(acts > 0, jnp.maximum(acts, SMALLEST), 1)
    return jnp.mean(jnp.sum(jnp.where(acts > 0, positive**p, 0), axis=1))


def loss(
    config: PAnnealingConfig, parameters: PAnnealingParameters, rows: Rows, context: LossContext, ops: Ops
) -> tuple[LossOutput, PAnnealingParameters]:
    """Mean ‖y - y_hat‖² + λ mean Σ f_i^p; the second value carries p's memory on."""
    annealed = (context.progress - config.anneal_start) / (1 - config.anneal_start)
    # Memory has no gradient, or the optimiser would move it.
    falls = jax.lax.stop_gradient(jnp.clip(jnp.floor(annealed * (FALLS + 1)), parameters.falls, FALLS))
    has_fallen = falls > parameters.falls
    ratio = parameters.penalty / jnp.maximum(parameters.next_penalty, 1e-12)
    factor = jax.lax.stop_gradient(jnp.where(has_fallen & (parameters.penalty > 0), parameters.factor * ratio, parameters.factor))
    coder = parameters.coder
    latents = ops.encode(rows.x, coder.W_enc, centred_bias(coder))
    y_hat = completed(coder, ops.decode(latents, coder.W_dec), rows.x)
    fall = (1 - config.p_end) / FALLS
    p = 1 - falls * fall
    penalty = power_penalty(latents.acts, p)
    terms = {
        "mse": squared_error(rows.y, y_hat),
        "sparsity": context.sparsity_scale * config.lp_coefficient * factor * penalty,
    }
    next_penalty = power_penalty(latents.acts, jnp.maximum(p - fall, config.p_end))

    def averaged(before: Array, now: Array) -> Array:
        is_first = has_fallen | (before == 0)
        return jax.lax.stop_gradient(jnp.where(is_first, now, before + AVERAGING_RATE * (now - before)))

    moved = PAnnealingParameters(
        parameters.coder, falls, factor,
        averaged(parameters.penalty, penalty), averaged(parameters.next_penalty, next_penalty),
    )  # fmt: skip
    return outcome(terms, rows, y_hat, latents), moved


def resample(
    parameters: PAnnealingParameters, rows: Rows, y_hat: Array, is_dead: Array, key: Any
) -> tuple[PAnnealingParameters, PAnnealingParameters]:
    """Dead latents started anew."""
    fresh, touched = resample_coder(parameters.coder, rows, y_hat, is_dead, key)
    nothing = jnp.zeros((), bool)
    return (
        parameters.replace(coder=fresh),
        PAnnealingParameters(touched, nothing, nothing, nothing, nothing),
    )


def export(config: PAnnealingConfig, parameters: PAnnealingParameters) -> InferenceSAE:
    """The pre-encoder bias folded into `b_enc`; the threshold is 0."""
    return exported(parameters.coder, centred_bias(parameters.coder), jnp.zeros(config.d_sae))


def from_inference(config: PAnnealingConfig, sae: InferenceSAE) -> PAnnealingParameters:
    """The SAE with decoder rows of norm 1, p = 1. Raises InvalidSpec if it has thresholds or k."""
    coder = start.centred_coder(sae, start.unit(start.without_thresholds(start.bypass(config, sae))))
    zero = start.zeros()
    return PAnnealingParameters(coder, zero, zero + 1, zero, zero)


ARCHITECTURE = Architecture(
    config=PAnnealingConfig,
    init=init,
    loss=loss,
    export=export,
    from_inference=from_inference,
    optimizer=OptimizerConfig(lr=3e-4, clip_norm=1.0, lr_warm_up=1000, lr_decay=0.2, sparsity_warm_up=5000),
    normalization="unit_mean_square",
    example=PAnnealingConfig(d_sae=64, lp_coefficient=0.01),
    n_active=lambda config: None,
    fit_to_rows=fit_to_rows,
    resample=resample,
    constrain_gradients=lambda parameters, gradients: gradients.replace(coder=tangent(parameters.coder, gradients.coder)),
    constrain=lambda parameters: parameters.replace(coder=normalized(parameters.coder)),
)
