"""Gated: one encoder decides which latents fire, its rescaled and shifted copy how much.

Source: Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated Sparse Autoencoders",
arXiv:2404.16014, sections 3.2 and 3.3; after each resampling the learning rate warms up again, as there. `aux` holds
its ablations: `full` freezes W_dec and b_dec where the gate reconstructs, `unfrozen` does not, and `off` leaves the
term out; b_dec is never frozen at the encoder's input. The paper is silent on initialisation: random unit decoder rows,
the encoder their transpose, everything else 0.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import Field

from sae_service.numerics import random_rows, remove_parallel, squared_error, unit_rows
from sae_service.pytree import PyTree
from sae_service.sae import parameters_from_inference
from sae_service.sae.architecture import Architecture, LossContext, LossOutput
from sae_service.sae.coder import Coder
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.resampling import resample_coder
from sae_service.schema import Duration, OptimizerConfig, ResamplingConfig


class GatedConfig(ResamplingConfig):
    """Gate and magnitude with tied weights."""

    kind: Literal["gated"] = "gated"  # pyright: ignore[reportIncompatibleVariableOverride]  frozen
    l1_coefficient: float = Field(default=0.1, ge=0, description="Weight of the sum of the positive gate pre-activations.")
    aux: Literal["full", "unfrozen", "off"] = Field(
        default="full",
        description="Auxiliary reconstruction from the gate: through a frozen decoder as published, unfrozen, or none.",
    )
    resample_at: tuple[Duration, ...] = (25_000, 50_000, 75_000, 100_000)
    lr_warm_up_again: bool = True


class GatedParameters(PyTree):
    """W_mag is W_gate with column i scaled by exp(r_mag_i). `b_dec` is subtracted from the input too."""

    W_gate: Float[Array, "d_in d_sae"]
    b_gate: Float[Array, " d_sae"]
    r_mag: Float[Array, " d_sae"]
    b_mag: Float[Array, " d_sae"]
    W_dec: Float[Array, "d_sae d_in"]
    b_dec: Float[Array, " d_in"]


def init(config: GatedConfig, d_in: int, key: Any) -> GatedParameters:
    """Random unit decoder rows, the encoder their transpose, everything else 0."""
    W_dec = random_rows(key, config.d_sae, d_in)
    return GatedParameters(
        W_gate=W_dec.T,
        b_gate=jnp.zeros(config.d_sae),
        r_mag=jnp.zeros(config.d_sae),
        b_mag=jnp.zeros(config.d_sae),
        W_dec=W_dec,
        b_dec=jnp.zeros(d_in),
    )


def loss(
    config: GatedConfig, parameters: GatedParameters, x: Float[Array, "batch d_in"], context: LossContext
) -> tuple[LossOutput, GatedParameters]:
    """Reconstruction + λ ‖ReLU(gate)‖₁ + reconstruction from the gate alone, whose decoder is frozen."""
    u = (x - parameters.b_dec) @ parameters.W_gate
    gate = u + parameters.b_gate
    magnitude = jax.nn.relu(u * jnp.exp(parameters.r_mag) + parameters.b_mag)
    acts = jnp.where(gate > 0, magnitude, 0)
    x_hat = acts @ parameters.W_dec + parameters.b_dec
    positive = jax.nn.relu(gate)
    terms = {
        "mse": squared_error(x, x_hat),
        "sparsity": context.sparsity_scale * config.l1_coefficient * jnp.mean(jnp.sum(positive, axis=1)),
    }
    if config.aux != "off":
        decoder = parameters.W_dec, parameters.b_dec
        W_dec, b_dec = jax.lax.stop_gradient(decoder) if config.aux == "full" else decoder
        terms["aux"] = squared_error(x, positive @ W_dec + b_dec)
    return LossOutput(sum(terms.values(), jnp.zeros(())), terms, x_hat, acts), parameters


def resample(
    parameters: GatedParameters, x: Array, x_hat: Array, is_dead: Array, key: Any
) -> tuple[GatedParameters, GatedParameters]:
    """Dead latents started anew, with a magnitude equal to the gate."""
    p = parameters
    fresh, touched = resample_coder(Coder(p.W_gate, p.b_gate, p.W_dec, p.b_dec), x, x_hat, is_dead, key)
    return (
        GatedParameters(
            W_gate=fresh.W_enc, b_gate=fresh.b_enc, r_mag=jnp.where(is_dead, 0, p.r_mag),
            b_mag=jnp.where(is_dead, 0, p.b_mag), W_dec=fresh.W_dec, b_dec=fresh.b_dec,
        ),
        GatedParameters(touched.W_enc, is_dead, is_dead, is_dead, touched.W_dec, touched.b_dec),
    )  # fmt: skip


def export(config: GatedConfig, parameters: GatedParameters) -> InferenceSAE:
    """The equivalent thresholds: z = exp(r) u + b_mag fires where z > b_mag - exp(r) b_gate.

    Source: arXiv:2404.16014, appendix on the equivalence with JumpReLU.
    """
    scale = jnp.exp(parameters.r_mag)
    W_enc = parameters.W_gate * scale
    return InferenceSAE(
        W_enc=W_enc,
        b_enc=parameters.b_mag - parameters.b_dec @ W_enc,
        W_dec=parameters.W_dec,
        b_dec=parameters.b_dec,
        threshold=parameters.b_mag - scale * parameters.b_gate,
    )


def constrain_gradients(parameters: GatedParameters, gradients: GatedParameters) -> GatedParameters:
    """Takes out what would change the decoder's norms."""
    return gradients.replace(W_dec=remove_parallel(gradients.W_dec, parameters.W_dec))


def constrain(parameters: GatedParameters) -> GatedParameters:
    """Decoder rows of norm 1."""
    return parameters.replace(W_dec=unit_rows(parameters.W_dec))


def from_inference(config: GatedConfig, sae: InferenceSAE) -> GatedParameters:
    """The SAE with decoder rows of norm 1: a magnitude that is its encoder, and the same for a gate, less the threshold.

    Raises InvalidSpec if it has k.
    """
    weights = parameters_from_inference.unit(parameters_from_inference.thresholded(sae))
    coder = parameters_from_inference.coder(weights)
    return GatedParameters(
        W_gate=coder.W_enc,
        b_gate=coder.b_enc - weights["threshold"],
        r_mag=parameters_from_inference.zeros(config.d_sae),
        b_mag=coder.b_enc,
        W_dec=coder.W_dec,
        b_dec=coder.b_dec,
    )


ARCHITECTURE = Architecture(
    config=GatedConfig,
    init=init,
    loss=loss,
    export=export,
    from_inference=from_inference,
    optimizer=OptimizerConfig(lr=3e-4, clip_norm=1.0, lr_warm_up=1000, lr_warm_up_shape="cosine"),
    normalization="unit_mean_square",
    example=GatedConfig(d_sae=64),
    resample=resample,
    constrain_gradients=constrain_gradients,
    constrain=constrain,
)
