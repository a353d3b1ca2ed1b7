"""ReLU with an L1 penalty as first published: tied pre-encoder bias, unit decoder rows, resampling.

Source: Bricken et al. 2023, "Towards Monosemanticity", Autoencoder setup and Neuron resampling.
"""

from typing import Any, Literal

import jax.numpy as jnp
from pydantic import Field

from sae_service.kernels.ops import Ops
from sae_service.numerics import squared_error
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
from sae_service.schema import Duration, OptimizerConfig, ResamplingConfig


class StandardTiedConfig(ResamplingConfig):
    """ReLU and L1, with the decoder's bias subtracted from the input."""

    kind: Literal["standard_tied"] = "standard_tied"  # pyright: ignore[reportIncompatibleVariableOverride]  frozen
    l1_coefficient: float = Field(default=0.05, ge=0, description="Weight of the sum of acts.")
    resample_at: tuple[Duration, ...] = (25_000, 50_000, 75_000, 100_000)


def init(config: StandardTiedConfig, sites: Sites, key: Any) -> Coder:
    """A random coder."""
    return random_coder(key, sites, config.d_sae)


def fit_to_rows(config: StandardTiedConfig, parameters: Coder, rows: Rows) -> Coder:
    """`b_dec` at the geometric median of the rows."""
    return answering(with_median(parameters, rows), rows)


def loss(
    config: StandardTiedConfig, parameters: Coder, rows: Rows, context: LossContext, ops: Ops
) -> tuple[LossOutput, Coder]:
    """Mean ‖y - y_hat‖² + λ mean Σ f_i."""
    latents = ops.encode(rows.x, parameters.W_enc, centred_bias(parameters))
    y_hat = completed(parameters, ops.decode(latents, parameters.W_dec), rows.x)
    terms = {
        "mse": squared_error(rows.y, y_hat),
        "sparsity": context.sparsity_scale * config.l1_coefficient * jnp.mean(jnp.sum(latents.acts, axis=1)),
    }
    return outcome(terms, rows, y_hat, latents), parameters


def export(config: StandardTiedConfig, parameters: Coder) -> InferenceSAE:
    """The pre-encoder bias folded into `b_enc`; the threshold is 0."""
    return exported(parameters, centred_bias(parameters), jnp.zeros(config.d_sae))


def from_inference(config: StandardTiedConfig, sae: InferenceSAE) -> Coder:
    """The SAE with decoder rows of norm 1. Raises InvalidSpec if it has thresholds or k."""
    return start.centred_coder(sae, start.unit(start.without_thresholds(start.bypass(config, sae))))


ARCHITECTURE = Architecture(
    config=StandardTiedConfig,
    init=init,
    loss=loss,
    export=export,
    from_inference=from_inference,
    optimizer=OptimizerConfig(lr=1e-3),
    normalization="unit_mean_square",
    example=StandardTiedConfig(d_sae=64, l1_coefficient=0.02),
    n_active=lambda config: None,
    fit_to_rows=fit_to_rows,
    resample=resample_coder,
    constrain_gradients=tangent,
    constrain=normalized,
)
