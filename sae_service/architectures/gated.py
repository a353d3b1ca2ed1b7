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
)
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.resampling import resample_coder
from sae_service.sae.sites import Sites
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
    """The gate and the decoder as a coder, which subtracts `b_dec` from its input. The magnitude's encoder is the gate's
    with column i scaled by exp(r_mag_i), and has a bias of its own.
    """

    coder: Coder
    r_mag: Float[Array, " d_sae"]
    b_mag: Float[Array, " d_sae"]


def init(config: GatedConfig, sites: Sites, key: Any) -> GatedParameters:
    """Random unit decoder rows, the encoder their transpose, everything else 0."""
    return GatedParameters(random_coder(key, sites, config.d_sae), jnp.zeros(config.d_sae), jnp.zeros(config.d_sae))


def fit_to_rows(config: GatedConfig, parameters: GatedParameters, rows: Rows) -> GatedParameters:
    """A transcoder's decoder, which has no encoder to be the transpose of, and a magnitude that begins as the gate."""
    coder = answering(parameters.coder, rows)
    return parameters.replace(coder=coder, b_mag=coder.b_enc)


def magnitude_bias(parameters: GatedParameters) -> Float[Array, " d_sae"]:
    """The magnitude's bias, with what the subtraction of `b_dec` adds to it."""
    offset = centred_bias(parameters.coder) - parameters.coder.b_enc
    return parameters.b_mag + jnp.exp(parameters.r_mag) * offset


def loss(
    config: GatedConfig, parameters: GatedParameters, rows: Rows, context: LossContext, ops: Ops
) -> tuple[LossOutput, GatedParameters]:
    """Reconstruction + λ ‖ReLU(gate)‖₁ + reconstruction from the gate alone, whose decoder is frozen."""
    coder = parameters.coder
    open_gates = ops.encode(rows.x, coder.W_enc, centred_bias(coder))
    gate, positive = open_gates.z, open_gates.acts
    scale, b_enc, b_mag = (open_gates.of(part) for part in (jnp.exp(parameters.r_mag), coder.b_enc, parameters.b_mag))
    magnitude = jax.nn.relu((gate - b_enc) * scale + b_mag)
    latents = open_gates.replace(acts=jnp.where(gate > 0, magnitude, 0))
    y_hat = completed(coder, ops.decode(latents, coder.W_dec), rows.x)
    terms = {
        "mse": squared_error(rows.y, y_hat),
        "sparsity": context.sparsity_scale * config.l1_coefficient * jnp.mean(jnp.sum(positive, axis=1)),
    }
    if config.aux != "off":
        frozen = jax.lax.stop_gradient(coder) if config.aux == "full" else coder
        from_gate = completed(frozen, ops.decode(open_gates, frozen.W_dec), rows.x)
        terms["aux"] = squared_error(rows.y, from_gate)
    return outcome(terms, rows, y_hat, latents), parameters


def resample(
    parameters: GatedParameters, rows: Rows, y_hat: Array, is_dead: Array, key: Any
) -> tuple[GatedParameters, GatedParameters]:
    """Dead latents started anew, with a magnitude equal to the gate."""
    fresh, touched = resample_coder(parameters.coder, rows, y_hat, is_dead, key)
    r_mag, b_mag = jnp.where(is_dead, 0, parameters.r_mag), jnp.where(is_dead, 0, parameters.b_mag)
    return GatedParameters(fresh, r_mag, b_mag), GatedParameters(touched, is_dead, is_dead)


def export(config: GatedConfig, parameters: GatedParameters) -> InferenceSAE:
    """The equivalent thresholds: z = exp(r) u + b_mag fires where z > b_mag - exp(r) b_gate.

    Source: arXiv:2404.16014, appendix on the equivalence with JumpReLU.
    """
    coder, scale = parameters.coder, jnp.exp(parameters.r_mag)
    threshold = parameters.b_mag - scale * coder.b_enc
    return exported(coder.replace(W_enc=coder.W_enc * scale), magnitude_bias(parameters), threshold)


def constrain_gradients(parameters: GatedParameters, gradients: GatedParameters) -> GatedParameters:
    """Takes out what would change the decoder's norms."""
    return gradients.replace(coder=tangent(parameters.coder, gradients.coder))


def constrain(parameters: GatedParameters) -> GatedParameters:
    """Decoder rows of norm 1."""
    return parameters.replace(coder=normalized(parameters.coder))


def from_inference(config: GatedConfig, sae: InferenceSAE) -> GatedParameters:
    """The SAE with decoder rows of norm 1: a magnitude that is its encoder, and the same for a gate, less the threshold.

    Raises InvalidSpec if it has k.
    """
    weights = start.unit(start.thresholded(start.bypass(config, sae)))
    coder = start.centred_coder(sae, weights)
    gate = coder.replace(b_enc=coder.b_enc - weights["threshold"])
    return GatedParameters(gate, start.zeros(config.d_sae), coder.b_enc)


ARCHITECTURE = Architecture(
    config=GatedConfig,
    init=init,
    loss=loss,
    export=export,
    from_inference=from_inference,
    optimizer=OptimizerConfig(lr=3e-4, clip_norm=1.0, lr_warm_up=1000, lr_warm_up_shape="cosine"),
    normalization="unit_mean_square",
    example=GatedConfig(d_sae=64),
    n_active=lambda config: None,
    fit_to_rows=fit_to_rows,
    resample=resample,
    constrain_gradients=constrain_gradients,
    constrain=constrain,
)
