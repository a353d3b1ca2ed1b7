"""Losses, activations and gradients computed by hand, independently of the code, in float64.

Every fixture: two rows in three dimensions, four latents, errors summed over dimensions and averaged over rows.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from sae_service.architectures import gated, jumprelu, jumprelu_tanh, matryoshka, standard, standard_tied, topk
from sae_service.kernels.dense import DENSE
from sae_service.kernels.jump import active
from sae_service.kernels.latents import Latents
from sae_service.kernels.selection import keep_largest, keep_largest_of_batch, kth_largest
from sae_service.numerics import squared_error, variance_of
from sae_service.sae.architecture import LossContext, outcome
from sae_service.sae.coder import Coder, tangent
from sae_service.sae.reconstruction import reconstruction, reconstruction_sums
from sae_service.sae.sites import at
from sae_service.sae.thresholded import ThresholdedCoder
from sae_service.training import metrics
from tests.planted import same, written

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
    return LossContext(array(1.0), jnp.zeros(4, bool), array(0.0))


def measure(module: Any, config: Any, parameters: Any) -> tuple[Any, Any]:
    """The loss output and the gradient of the total."""

    def total(values: Any) -> tuple[jax.Array, Any]:
        output, _ = module.loss(config, values, same(array(X)), context(), DENSE)
        return output.total, output

    gradients, output = jax.grad(total, has_aux=True)(parameters)
    return output, gradients


def acts_of(module: Any, config: Any, parameters: Any) -> jax.Array:
    """The activations that the loss decodes first."""
    decoded = []

    def decode(latents: Latents, W_dec: jax.Array) -> jax.Array:
        decoded.append(latents.acts)
        return DENSE.decode(latents, W_dec)

    module.loss(config, parameters, same(array(X)), context(), dataclasses.replace(DENSE, decode=decode))
    return decoded[0]


def x_hat_of(module: Any, config: Any, parameters: Any) -> jax.Array:
    return written(module, config, parameters, same(array(X)), context())


def close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(actual), expected, atol=6e-7)


def gated_parameters() -> gated.GatedParameters:
    return gated.GatedParameters(
        coder().replace(b_enc=array([-0.4, 0, 0.1, -0.3])),
        r_mag=array([0.1, 0, -0.1, 0.2]),
        b_mag=array([0, 0.05, 0, -0.1]),
    )


def jumprelu_parameters() -> jumprelu.JumpReLUParameters:
    return jumprelu.JumpReLUParameters(coder(), array(THRESHOLD))


def test_gated_loss_and_gradients() -> None:
    config = gated.GatedConfig(d_sae=4, l1_coefficient=0.5)
    output, gradients = measure(gated, config, gated_parameters())
    close(acts_of(gated, config, gated_parameters()), [[1.049912, 0.55, 0, 1.084761], [0, 0, 0.72387, 0]])
    close(output.terms["mse"], 0.837161)
    close(output.terms["sparsity"], 0.655)
    close(output.terms["aux"], 0.2799)
    close(output.total, 1.772061)
    close(gradients.r_mag, [0.788241, 0.458904, -0.055108, 1.403596])
    close(gradients.coder.b_enc, [0.252, 0.786, 0.35, 0.68])
    close(gradients.b_mag, [0.750769, 0.917809, -0.07613, 1.184708])
    close(gradients.coder.b_dec, [-1.857162, -2.087605, -0.157245])
    close(gradients.coder.W_enc[:, 0], [1.027641, 0.540864, -0.216346])
    close(gradients.coder.W_enc[:, 3], [2.020655, 1.063503, -0.425401])


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
    close(acts_of(jumprelu, config, jumprelu_parameters()), [[0.85, 0.5, 0, 0.77], [0, 0, 0.9, 0]])
    close(output.terms["mse"], 0.3915)
    close(output.total, total)
    close(gradients.threshold, by_threshold)
    close(gradients.threshold * array(THRESHOLD), by_log_threshold)
    close(gradients.coder.b_enc, [0.362, 0.616, 0.1, 0.71])


def test_standard_gradients_agree_with_finite_differences() -> None:
    config = standard.StandardConfig(d_sae=4, l1_coefficient=0.5)
    parameters = coder().replace(W_enc=array(W_DEC).T * 1.1, W_dec=array(W_DEC) * 0.7)
    _, gradients = measure(standard, config, parameters)
    flat, unflatten = jax.flatten_util.ravel_pytree(parameters)
    direction = array(np.random.default_rng(0).normal(size=flat.shape))

    def total(step: float) -> float:
        output, _ = standard.loss(config, unflatten(flat + step * direction), same(array(X)), context(), DENSE)
        return float(output.total)

    expected = (total(1e-6) - total(-1e-6)) / 2e-6
    actual = float(jnp.vdot(jax.flatten_util.ravel_pytree(gradients)[0], direction))
    assert actual == pytest.approx(expected, rel=1e-7)


def coder() -> Coder:
    return Coder(W_enc=array(W_DEC).T, b_enc=array(B_ENC), W_dec=array(W_DEC), b_dec=array(B_DEC), sites=at("hook", 3))


def relu_acts() -> jax.Array:
    """The activations of the coder without a choice among them."""
    return jax.nn.relu((array(X) - array(B_DEC)) @ array(W_DEC).T + array(B_ENC))


def test_tied_standard_loss_and_gradients() -> None:
    config = standard_tied.StandardTiedConfig(d_sae=4, l1_coefficient=0.5)
    output, gradients = measure(standard_tied, config, coder())
    close(acts_of(standard_tied, config, coder()), [[0.85, 0.5, 0, 0.77], [0.15, 0, 0.9, 0]])
    close(x_hat_of(standard_tied, config, coder()), [[1.362, 1.116, 0], [0.2, 0, 0.9]])
    close(output.terms["mse"], 0.36525)
    close(output.total, 1.15775)
    close(gradients.b_enc, [0.762, 0.866, 0.35, 0.96])
    close(gradients.b_dec, [-1.076, -0.618, -0.05])
    close(tangent(coder(), gradients).W_dec[3], [-0.04928, 0.03696, 0.154])


def test_standard_weighs_latents_by_their_decoder_norms_which_get_a_gradient() -> None:
    b_enc = array(B_ENC) - array(B_DEC) @ array(W_DEC).T
    config, parameters = standard.StandardConfig(d_sae=4, l1_coefficient=0.5), coder().replace(b_enc=b_enc)
    output, gradients = measure(standard, config, parameters)
    close(x_hat_of(standard, config, parameters), [[1.362, 1.116, 0], [0.2, 0, 0.9]])
    close(output.total, 1.15775)
    close(gradients.b_enc, [0.762, 0.866, 0.35, 0.96])
    close(gradients.W_dec[3], [0.39424, 0.62832, 0.154])


def test_a_latent_just_below_its_threshold_is_in_the_window_though_it_does_not_fire() -> None:
    def sparsity(threshold: jax.Array) -> jax.Array:
        return 0.1 * jnp.mean(active(array([[0.85], [0.15]]), threshold, array(0.4)))

    close(jax.grad(sparsity)(array([0.3])), [-0.125])


def test_a_target_for_each_row_is_the_published_quadratic_penalty() -> None:
    config = jumprelu.JumpReLUConfig(d_sae=4, l0_coefficient=0.1, bandwidth=0.4, target_l0=2.0, target_each_row=True)
    output, gradients = measure(jumprelu, config, jumprelu_parameters())
    assert (acts_of(jumprelu, config, jumprelu_parameters()) > 0).sum(axis=1).tolist() == [3, 1]
    published = 0.1 / (2 * 2.0)
    close(output.terms["sparsity"], published * (2 / 2.0) * ((3 - 2) ** 2 + (1 - 2) ** 2) / 2)
    # The row with too many latents raises the threshold in its window, the row with too few lowers it.
    without, by_batch = (
        measure(jumprelu, config.model_copy(update=change), jumprelu_parameters())[1].threshold
        for change in ({"l0_coefficient": 0.0}, {"target_each_row": False})
    )
    close(by_batch - without, [0, 0, 0, 0])
    close(gradients.threshold - without, [0.0625, -0.0625, 0, -0.0625])


def test_jumprelu_tanh_loss_and_gradients() -> None:
    config = jumprelu_tanh.JumpReLUTanhConfig(
        d_sae=4, sparsity_coefficient=0.1, tanh_scale=4, pre_act_coefficient=0.3, bandwidth=0.4
    )
    parameters = jumprelu_tanh.JumpReLUTanhParameters(coder(), jnp.log(array(THRESHOLD)))
    output, gradients = measure(jumprelu_tanh, config, parameters)
    close(output.terms["mse"], 0.3915)
    close(output.terms["sparsity"], 0.1 * 1.978047)
    close(output.terms["pre_act"], 0.3 * 1.26)
    close(output.total, 0.967305)
    close(gradients.log_threshold, [0.05625, -0.192052, 0.075, -0.550514])
    close(gradients.coder.b_enc, [0.212889, 0.48013, -0.049404, 0.561683])


def test_topk_keeps_the_largest_of_each_row() -> None:
    config = topk.TopKConfig(d_sae=4, k=2)
    close(acts_of(topk, config, coder()), [[0.85, 0, 0, 0.77], [0.15, 0, 0.9, 0]])
    close(squared_error(array(X), x_hat_of(topk, config, coder())), 0.18225)


def test_batchtopk_keeps_the_largest_of_the_batch() -> None:
    kept, smallest = keep_largest_of_batch(relu_acts(), 1.5)
    close(kept, [[0.85, 0, 0, 0.77], [0, 0, 0.9, 0]])
    close(smallest, 0.77)


def test_matryoshkas_prefixes_each_reconstruct_alone() -> None:
    config = matryoshka.MatryoshkaConfig(d_sae=4, k=4, widths=(1, 4))
    parameters = ThresholdedCoder(coder(), array(0.0))
    output, _ = measure(matryoshka, config, parameters)
    acts, x = relu_acts(), array(X)
    variance = variance_of(x)
    one = acts[:, :1] @ array(W_DEC)[:1] + array(B_DEC)
    whole = acts @ array(W_DEC) + array(B_DEC)
    close(output.terms["error"], (squared_error(x, one) + squared_error(x, whole)) / 2 / variance)
    close(x_hat_of(matryoshka, config, parameters), whole)


@pytest.mark.parametrize("k", [1, 3, 7, 40])
def test_the_kth_largest_is_exact(k: int) -> None:
    values = jax.random.uniform(jax.random.key(k), (5, 40)) ** 4
    expected = jnp.sort(values, axis=1)[:, -k]
    assert jnp.array_equal(kth_largest(values, k), expected)
    assert jnp.array_equal(jnp.sum(keep_largest(values, k) > 0, axis=1), jnp.full(5, k))
    assert jnp.array_equal(kth_largest(values.astype(jnp.float32), k), expected.astype(jnp.float32))


def test_the_metrics_of_reconstruction_are_those_computed_by_hand() -> None:
    x, acts = array(X), relu_acts()
    x_hat = acts @ array(W_DEC) + array(B_DEC)
    found = reconstruction(jax.tree.map(np.asarray, reconstruction_sums(x, x_hat, acts, jnp.ones(2))))
    close(found["l0"], 2.5)
    close(found["mse"], 0.36525)
    close(found["fvu"], 0.635217)
    close(found["fvu_about_zero"], 0.335092)
    close(found["fvu_by_row"], 0.314496)
    close(found["relative_reconstruction_bias"], 1.463148)
    close(found["l2_ratio"], 1.263794)
    close(found["cossim"], 0.928416)
    output = outcome({}, same(x), x_hat, Latents(acts, acts))
    close(metrics.read(metrics.add(metrics.empty((), 3), x, output, array(0.0)), 1)["fvu"], 0.635217)
