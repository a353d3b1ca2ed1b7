"""Losses, activations and gradients computed by hand, independently of the code, in float64.

Every fixture: two rows in three dimensions, four latents, errors summed over dimensions and averaged over rows.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from sae_service.architectures import gated, jumprelu, standard
from sae_service.sae import LossContext

X = [[1, 0.5, -0.2], [0.3, -0.4, 0.8]]
W_DEC = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0.8, 0]]
B_ENC = [-0.1, 0, 0.1, -0.2]
B_DEC = [0.05, 0, 0]
THRESHOLD = [0.3, 0.4, 0.5, 0.6]


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def array(values: Any) -> jax.Array:
    return jnp.asarray(values, jnp.float64)


def context() -> LossContext:
    return LossContext(array(1.0), jnp.zeros(4, bool))


def measure(module: Any, config: Any, parameters: Any) -> tuple[Any, Any]:
    """The loss output and the gradient of the total."""

    def total(values: Any) -> tuple[jax.Array, Any]:
        output, _ = module.loss(config, values, array(X), context())
        return output.total, output

    gradients, output = jax.grad(total, has_aux=True)(parameters)
    return output, gradients


def close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(actual), expected, atol=6e-7)


def gated_parameters() -> gated.GatedParameters:
    return gated.GatedParameters(
        W_gate=array(W_DEC).T,
        b_gate=array([-0.4, 0, 0.1, -0.3]),
        r_mag=array([0.1, 0, -0.1, 0.2]),
        b_mag=array([0, 0.05, 0, -0.1]),
        W_dec=array(W_DEC),
        b_dec=array(B_DEC),
    )


def jumprelu_parameters() -> jumprelu.JumpReLUParameters:
    return jumprelu.JumpReLUParameters(
        W_enc=array(W_DEC).T,
        b_enc=array(B_ENC),
        W_dec=array(W_DEC),
        b_dec=array(B_DEC),
        log_threshold=jnp.log(array(THRESHOLD)),
    )


def test_gated_loss_and_gradients() -> None:
    output, gradients = measure(gated, gated.GatedConfig(d_sae=4, l1_coefficient=0.5), gated_parameters())
    close(output.acts, [[1.049912, 0.55, 0, 1.084761], [0, 0, 0.72387, 0]])
    close(output.terms["mse"], 0.837161)
    close(output.terms["sparsity"], 0.655)
    close(output.terms["aux"], 0.2799)
    close(output.total, 1.772061)
    close(gradients.r_mag, [0.788241, 0.458904, -0.055108, 1.403596])
    close(gradients.b_gate, [0.252, 0.786, 0.35, 0.68])
    close(gradients.b_mag, [0.750769, 0.917809, -0.07613, 1.184708])
    close(gradients.b_dec, [-1.857162, -2.087605, -0.157245])
    close(gradients.W_gate[:, 0], [1.027641, 0.540864, -0.216346])
    close(gradients.W_gate[:, 3], [2.020655, 1.063503, -0.425401])


def test_gated_equals_its_thresholds() -> None:
    config, parameters = gated.GatedConfig(d_sae=4), gated_parameters()
    exported = gated.export(config, parameters)
    close(exported.threshold, [0.442068, 0.05, -0.090484, 0.266421])
    close(exported.encode(array(X)), [[1.049912, 0.55, 0, 1.084761], [0, 0, 0.72387, 0]])


def test_gated_without_the_auxiliary_term_has_none() -> None:
    config = gated.GatedConfig(d_sae=4, l1_coefficient=0.5, aux="off")
    output, _ = measure(gated, config, gated_parameters())
    close(output.total, 0.837161 + 0.655)


@pytest.mark.parametrize(
    ("target", "total", "by_threshold", "by_log_threshold"),
    [
        (None, 0.5915, [0.0625, -0.741, 0, -1.19], [0.01875, -0.2964, 0, -0.714]),
        (1.0, 0.4915, [-0.0625, -0.866, 0, -1.315], [-0.01875, -0.3464, 0, -0.789]),
    ],
)
def test_jumprelu_loss_and_gradients(
    target: float | None, total: float, by_threshold: list[float], by_log_threshold: list[float]
) -> None:
    config = jumprelu.JumpReLUConfig(d_sae=4, l0_coefficient=0.1, bandwidth=0.4, target_l0=target)
    output, gradients = measure(jumprelu, config, jumprelu_parameters())
    close(output.acts, [[0.85, 0.5, 0, 0.77], [0, 0, 0.9, 0]])
    close(output.terms["mse"], 0.3915)
    close(output.total, total)
    close(gradients.log_threshold, by_log_threshold)
    close(gradients.log_threshold / array(THRESHOLD), by_threshold)
    close(gradients.b_enc, [0.362, 0.616, 0.1, 0.71])


def test_standard_gradients_agree_with_finite_differences() -> None:
    config = standard.StandardConfig(d_sae=4, l1_coefficient=0.5)
    parameters = standard.StandardParameters(array(W_DEC).T * 1.1, array(B_ENC), array(W_DEC) * 0.7, array(B_DEC))
    _, gradients = measure(standard, config, parameters)
    flat, unflatten = jax.flatten_util.ravel_pytree(parameters)
    direction = array(np.random.default_rng(0).normal(size=flat.shape))

    def total(step: float) -> float:
        output, _ = standard.loss(config, unflatten(flat + step * direction), array(X), context())
        return float(output.total)

    expected = (total(1e-6) - total(-1e-6)) / 2e-6
    actual = float(jnp.vdot(jax.flatten_util.ravel_pytree(gradients)[0], direction))
    assert actual == pytest.approx(expected, rel=1e-7)
