"""ReLU with an L1 penalty as first published: tied pre-encoder bias, unit decoder rows, resampling.

Source: Bricken et al. 2023, "Towards Monosemanticity", Autoencoder setup and Neuron resampling.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import Field

from sae_service.numerics import squared_error
from sae_service.sae import parameters_from_inference
from sae_service.sae.architecture import Architecture, LossContext, LossOutput
from sae_service.sae.coder import Coder, centred, exported, normalized, random_coder, tangent
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.resampling import resample_coder
from sae_service.schema import Duration, OptimizerConfig, ResamplingConfig


class StandardTiedConfig(ResamplingConfig):
    """ReLU and L1, with the decoder's bias subtracted from the input."""

    kind: Literal["standard_tied"] = "standard_tied"  # pyright: ignore[reportIncompatibleVariableOverride]  frozen
    l1_coefficient: float = Field(default=0.05, ge=0, description="Weight of the sum of acts.")
    resample_at: tuple[Duration, ...] = (25_000, 50_000, 75_000, 100_000)


def init(config: StandardTiedConfig, d_in: int, key: Any) -> Coder:
    """A random coder."""
    return random_coder(key, d_in, config.d_sae)


def fit_to_rows(config: StandardTiedConfig, parameters: Coder, rows: Float[Array, "rows d_in"]) -> Coder:
    """`b_dec` at the geometric median of the rows."""
    return centred(parameters, rows)


def loss(
    config: StandardTiedConfig, parameters: Coder, x: Float[Array, "batch d_in"], context: LossContext
) -> tuple[LossOutput, Coder]:
    """Mean ‖x - x_hat‖² + λ mean Σ f_i."""
    acts = jax.nn.relu(parameters.encode(x))
    x_hat = parameters.decode(acts)
    terms = {
        "mse": squared_error(x, x_hat),
        "sparsity": context.sparsity_scale * config.l1_coefficient * jnp.mean(jnp.sum(acts, axis=1)),
    }
    return LossOutput(terms["mse"] + terms["sparsity"], terms, x_hat, acts), parameters


def export(config: StandardTiedConfig, parameters: Coder) -> InferenceSAE:
    """The pre-encoder bias folded into `b_enc`; the threshold is 0."""
    return exported(parameters, jnp.zeros(config.d_sae))


def from_inference(config: StandardTiedConfig, sae: InferenceSAE) -> Coder:
    """The SAE with decoder rows of norm 1. Raises InvalidSpec if it has thresholds or k."""
    return parameters_from_inference.coder(parameters_from_inference.unit(parameters_from_inference.without_thresholds(sae)))


ARCHITECTURE = Architecture(
    config=StandardTiedConfig,
    init=init,
    loss=loss,
    export=export,
    from_inference=from_inference,
    optimizer=OptimizerConfig(lr=1e-3),
    normalization="unit_mean_square",
    example=StandardTiedConfig(d_sae=64, l1_coefficient=0.02),
    fit_to_rows=fit_to_rows,
    resample=resample_coder,
    constrain_gradients=tangent,
    constrain=normalized,
)
