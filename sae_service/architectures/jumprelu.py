"""JumpReLU: a learned threshold for every latent, trained on the number of active latents itself.

Source: Rajamanoharan et al. 2024, "Jumping Ahead", arXiv:2407.14435; hyperparameters and initialisation as restated
in Lieberum et al. 2024, "Gemma Scope", arXiv:2408.05147. The inner ReLU before the jump is left out: thresholds are
not negative, so the forward pass is the same. Where public code differs, this was chosen: the step sees z and not the
activations, so that both halves of the window count; the threshold itself is trained and kept at 0 or above, not its
logarithm as in the papers, which Adam hardly moves in a short job (DECISIONS 16); decoder rows are not held at norm 1,
and thresholds and the window are in units of a latent, whatever its row's norm (DECISIONS 22); b_dec is subtracted from
the input; nothing else is divided by d_in.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import Field, model_validator

from sae_service.kernels.jump import active
from sae_service.kernels.ops import Ops
from sae_service.numerics import squared_error
from sae_service.pytree import PyTree
from sae_service.sae import parameters_from_inference as start
from sae_service.sae.architecture import Architecture, LossContext, LossOutput, Rows, outcome
from sae_service.sae.coder import (
    FREE_NORM,
    Coder,
    answering,
    centred_bias,
    completed,
    exported,
    norms,
    random_coder,
    with_unit_rows,
)
from sae_service.sae.dead import OfLatents, of_dead
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.sites import Sites
from sae_service.schema import BypassConfig, OptimizerConfig, refuse

TARGET_COEFFICIENT = 1.0


class JumpReLUConfig(BypassConfig):
    """Thresholds and an L0 penalty, linear or with a target."""

    kind: Literal["jumprelu"] = "jumprelu"  # pyright: ignore[reportIncompatibleVariableOverride]  frozen
    l0_coefficient: float = Field(
        default=6e-4, ge=0, description="Weight of L0, or of (L0 / target_l0 - 1)², where the default is 1."
    )
    target_l0: float | None = Field(default=None, gt=0, description="The L0 to aim at; null penalises L0 linearly.")
    target_each_row: bool = Field(
        default=False,
        description="With target_l0: whether each row's L0 is compared with it, as Gemma Scope 2 writes it (coefficient "
        "here = 2 target_l0 times theirs), or the batch's mean. Rows differ, so a weak penalty on each row misses the mean.",
    )
    pre_act_coefficient: float = Field(
        default=0.0,
        ge=0,
        description="Weight of how far the dead latents are below their thresholds, which revives them; none in the paper.",
    )
    bandwidth: float = Field(default=0.001, gt=0, description="Width of the window that gives thresholds a gradient.")
    initial_threshold: float = Field(default=0.001, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _fill_in_default(cls, data: Any) -> Any:
        """The weight of a target: at that of the linear penalty it would not be felt."""
        if isinstance(data, dict) and data.get("target_l0") is not None:
            return {"l0_coefficient": TARGET_COEFFICIENT, **data}
        return data

    @model_validator(mode="after")
    def _check_target(self) -> "JumpReLUConfig":
        if self.target_l0 is not None and self.target_l0 > self.d_sae:
            refuse(("target_l0",), f"must be at most d_sae ({self.d_sae})", self.target_l0)
        if self.target_each_row and self.target_l0 is None:
            refuse(("target_each_row",), "needs target_l0", self.target_each_row)
        return self


class JumpReLUParameters(PyTree):
    """A coder that subtracts `b_dec` from its input, and thresholds, none of them negative."""

    coder: Coder
    threshold: Float[Array, " d_sae"]


def init(config: JumpReLUConfig, sites: Sites, key: Any) -> JumpReLUParameters:
    """Random decoder rows of norm 0.5, encoder columns along them, biases 0; a latent gives back d_in / d_sae of its direction.

    Half of the latents fire at first: if each gave back all of it, they would reconstruct d_sae / (2 d_in) times the row.
    Source (the factor): Anthropic, January 2025 update.
    """
    coder = random_coder(key, sites, config.d_sae, FREE_NORM, config.skip)
    gain = min(1, sites.d_read / config.d_sae) / FREE_NORM**2
    return JumpReLUParameters(coder.replace(W_enc=gain * coder.W_enc), jnp.full(config.d_sae, config.initial_threshold))


def fit_to_rows(config: JumpReLUConfig, parameters: JumpReLUParameters, rows: Rows) -> JumpReLUParameters:
    """A transcoder's decoder, which has no encoder to be the transpose of."""
    return parameters.replace(coder=answering(parameters.coder, rows))


def loss(
    config: JumpReLUConfig, parameters: JumpReLUParameters, rows: Rows, context: LossContext, ops: Ops
) -> tuple[LossOutput, JumpReLUParameters]:
    """Mean ‖y - y_hat‖² + λ L0, or + λ (L0 / target - 1)² with the batch's mean L0 or each row's.

    Source (each row's): Gemma Scope 2, quadratic penalty λ (2 / target) (L0 - target)².
    """
    coder, threshold, bandwidth = parameters.coder, parameters.threshold, jnp.asarray(config.bandwidth, rows.x.dtype)
    encoder = rows.x, coder.W_enc, centred_bias(coder)
    latents = ops.encode_above(*encoder, threshold, bandwidth)
    y_hat = completed(coder, ops.decode(latents, coder.W_dec), rows.x)
    l0 = jnp.sum(active(latents.z, latents.of(threshold), bandwidth), axis=1)
    l0 = l0 if config.target_each_row else jnp.mean(l0)
    penalty = jnp.mean(l0 if config.target_l0 is None else jnp.square(l0 / config.target_l0 - 1))
    # Where it has no weight there is nothing to compute.
    is_lifted = context.is_dead & (config.pre_act_coefficient > 0)
    of_each = OfLatents(*encoder[1:], (threshold, norms(coder)))
    below: Any = of_dead(below_threshold, ops.can_gather, is_lifted, rows.x, of_each, None)
    terms = {
        "mse": squared_error(rows.y, y_hat),
        "sparsity": context.sparsity_scale * config.l0_coefficient * penalty,
        "pre_act": config.pre_act_coefficient * below,
    }
    return outcome(terms, rows, y_hat, latents), parameters


def below_threshold(z: Array, is_dead: Array, others: tuple[Array, Array], given: None) -> Array:
    """How far the dead latents are below their thresholds, times their norms, summed over them; the mean over rows."""
    threshold, found = others
    return jnp.mean(jnp.sum(jnp.where(is_dead, jax.nn.relu(threshold - z) * found, 0), axis=1))


def n_active(config: JumpReLUConfig) -> float | None:
    """The L0 that it aims at, if it has one."""
    return config.target_l0


def export(config: JumpReLUConfig, parameters: JumpReLUParameters) -> InferenceSAE:
    """Decoder norms folded into the encoder and the thresholds, the pre-encoder bias into `b_enc`."""
    coder = with_unit_rows(parameters.coder)
    return exported(coder, centred_bias(coder), parameters.threshold * norms(parameters.coder))


def constrain(parameters: JumpReLUParameters) -> JumpReLUParameters:
    """Thresholds of 0 or above."""
    return parameters.replace(threshold=jnp.maximum(parameters.threshold, 0))


def from_inference(config: JumpReLUConfig, sae: InferenceSAE) -> JumpReLUParameters:
    """The SAE with decoder rows of norm 1. Raises InvalidSpec if it has k."""
    weights: Any = start.unit(start.thresholded(start.bypass(config, sae)))
    return JumpReLUParameters(start.centred_coder(sae, weights), weights["threshold"])


ARCHITECTURE = Architecture(
    config=JumpReLUConfig,
    init=init,
    loss=loss,
    export=export,
    from_inference=from_inference,
    optimizer=OptimizerConfig(
        lr=7e-5, clip_norm=0.1, lr_warm_up=1000, lr_warm_up_shape="cosine", sparsity_warm_up=10_000
    ),
    normalization="unit_mean_square",
    example=JumpReLUConfig(d_sae=64),
    n_active=n_active,
    fit_to_rows=fit_to_rows,
    constrain=constrain,
)
