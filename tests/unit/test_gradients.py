"""Gradients of every architecture, in float64: against finite differences, dense masks and the kernels' definition."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_service.architectures import ARCHITECTURES, gated, topk
from sae_service.kernels.dense import DENSE
from sae_service.kernels.jump import active, jumprelu
from sae_service.kernels.latents import Latents
from sae_service.numerics import normalized_error
from sae_service.sae.architecture import Architecture, LossContext, Rows
from sae_service.sae.auxk import auxk_error
from sae_service.sae.coder import Coder
from sae_service.sae.sites import Sites
from tests.planted import BATCH, D_IN, PLANTED, planted_rows, same

# Nothing may be frozen where differences are taken, and every term must count.
CHANGES = {"gated": {"aux": "unfrozen"}, "topk": {"multi_coefficient": 0.125}}


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(params=list(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return ARCHITECTURES[request.param]


def rows() -> Rows:
    return same(planted_rows(BATCH).astype(jnp.float64))


def context() -> LossContext:
    return LossContext(jnp.ones(()), jnp.zeros(64, bool), jnp.zeros(()))


def in_general_position(parameters: Any) -> Any:
    """The parameters in float64, moved at random; scalars are an architecture's memory and stay."""
    random = np.random.default_rng(3)
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf + 0.1 * random.normal(size=leaf.shape) * (leaf.ndim > 0), jnp.float64), parameters
    )


def test_gradients_agree_with_finite_differences(architecture: Architecture) -> None:
    config = architecture.example.model_copy(update=CHANGES.get(architecture.example.kind, {}))
    parameters = in_general_position(architecture.init(config, PLANTED.sites, jax.random.key(0)))


    @jax.jit
    @jax.value_and_grad
    def measure(values: Any, numbers: dict[str, Any]) -> jax.Array:
        return architecture.loss(config.with_numbers(numbers), values, rows(), context(), DENSE)[0].total

    gradients = jax.tree.leaves(measure(parameters, config.numbers())[1])
    paths, structure = jax.tree_util.tree_flatten_with_path(parameters)
    leaves = [leaf for _, leaf in paths]
    checked = 0
    for index, (path, leaf) in enumerate(paths):
        # A threshold's gradient is that of the expected loss; its own test is below.
        if leaf.ndim == 0 or "threshold" in jax.tree_util.keystr(path):
            continue
        direction = jnp.asarray(np.random.default_rng(index).normal(size=leaf.shape))

        def moved(step: float, index: int = index, leaf: Any = leaf, direction: Any = direction) -> float:
            values = structure.unflatten([*leaves[:index], leaf + step * direction, *leaves[index + 1 :]])
            return float(measure(values, config.numbers())[0])

        expected = (moved(1e-7) - moved(-1e-7)) / 2e-7
        assert float(jnp.vdot(gradients[index], direction)) == pytest.approx(expected, rel=1e-5, abs=1e-7), path
        checked += 1
    assert checked >= 4


def test_the_step_has_the_central_difference_over_its_window_as_gradient() -> None:
    z = jnp.asarray(np.random.default_rng(0).normal(size=(5000, 3)))
    threshold, bandwidth = jnp.array([0.2, 0.5, 0.9]), jnp.array(0.1)

    def l0(threshold: jax.Array) -> jax.Array:
        return jnp.mean(jnp.sum(active(z, threshold, bandwidth), axis=1))

    actual = jax.grad(l0)(threshold)
    for latent in range(3):
        offset = jnp.zeros(3).at[latent].set(bandwidth / 2)
        assert float(actual[latent]) == pytest.approx(float((l0(threshold + offset) - l0(threshold - offset)) / bandwidth))
    assert not jnp.any(jax.grad(lambda z: jnp.sum(active(z, threshold, bandwidth)))(z))


@pytest.mark.parametrize(("offset", "is_inside"), [(-0.051, False), (-0.049, True), (0.049, True), (0.051, False)])
def test_both_halves_of_the_window_count_and_nothing_outside(offset: float, is_inside: bool) -> None:
    threshold, bandwidth = jnp.array([0.3]), jnp.array(0.1)
    z = threshold[None] + offset
    by_step = jax.grad(lambda value: jnp.sum(active(z, value, bandwidth)))(threshold)
    by_jump = jax.grad(lambda value: jnp.sum(jumprelu(z, value, bandwidth)))(threshold)
    assert by_step.item() == pytest.approx(-10.0 * is_inside)
    assert by_jump.item() == pytest.approx(-10.0 * 0.3 * is_inside)
    assert jax.grad(lambda value: jnp.sum(jumprelu(value, threshold, bandwidth)))(z).item() == (offset > 0)


def acts_of(coder: Coder) -> jax.Array:
    return jax.nn.relu((rows().x - coder.b_dec) @ coder.W_enc + coder.b_enc)


def test_topk_has_the_gradient_of_a_dense_sae_with_the_same_mask() -> None:
    config = topk.TopKConfig(d_sae=64, k=4)
    parameters: Coder = in_general_position(topk.init(config, PLANTED.sites, jax.random.key(0)))
    z = np.asarray(acts_of(parameters))
    mask = np.zeros_like(z)
    np.put_along_axis(mask, np.argsort(z, axis=1)[:, -4:], 1, axis=1)

    def dense(values: Coder) -> jax.Array:
        return normalized_error(rows().y, (acts_of(values) * mask) @ values.W_dec + values.b_dec)

    expected = jax.grad(dense)(parameters)
    actual = jax.grad(lambda values: topk.loss(config, values, rows(), context(), DENSE)[0].total)(parameters)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), actual, expected)


def test_the_folded_bias_is_the_subtraction_of_b_dec_from_the_input(architecture: Architecture) -> None:
    """A transcoder's input stays as it is, so the same loss with its sites and x - b_dec for x has the subtraction itself."""
    config: Any = architecture.example
    parameters = in_general_position(architecture.init(config, PLANTED.sites, jax.random.key(0)))
    if config.kind == "standard":
        return  # It subtracts nothing.

    def at_sites(parameters: Any, sites: Sites) -> Any:
        return jax.tree.map(
            lambda part: part.replace(sites=sites) if isinstance(part, Coder) else part,
            parameters, is_leaf=lambda part: isinstance(part, Coder),
        )  # fmt: skip

    def folding(parameters: Any) -> jax.Array:
        return architecture.loss(config, parameters, rows(), context(), DENSE)[0].total

    def subtracting(parameters: Any) -> jax.Array:
        b_dec = parameters.b_dec if isinstance(parameters, Coder) else parameters.coder.b_dec
        there = at_sites(parameters, Sites((("in", D_IN),), (("out", D_IN),)))
        return architecture.loss(config, there, Rows(rows().x - b_dec, rows().y), context(), DENSE)[0].total

    expected, by_subtraction = jax.value_and_grad(subtracting)(parameters)
    actual, by_bias = jax.value_and_grad(folding)(parameters)
    assert float(actual) == pytest.approx(float(expected), abs=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), by_bias, by_subtraction)


def test_gated_trains_its_encoder_as_unfrozen_and_its_decoder_as_without_the_auxiliary_term() -> None:
    config = gated.GatedConfig(d_sae=64)
    parameters = in_general_position(gated.init(config, PLANTED.sites, jax.random.key(0)))

    def gradients(aux: str) -> gated.GatedParameters:
        changed = config.model_copy(update={"aux": aux})
        return jax.grad(lambda values: gated.loss(changed, values, rows(), context(), DENSE)[0].total)(parameters)

    full, unfrozen, off = gradients("full"), gradients("unfrozen"), gradients("off")
    np.testing.assert_allclose(full.coder.W_enc, unfrozen.coder.W_enc, atol=1e-12)
    np.testing.assert_allclose(full.coder.W_dec, off.coder.W_dec, atol=1e-12)
    assert float(jnp.max(jnp.abs(full.coder.W_enc - off.coder.W_enc))) > 1e-3
    assert float(jnp.max(jnp.abs(full.coder.W_dec - unfrozen.coder.W_dec))) > 1e-3
    assert float(jnp.max(jnp.abs(full.coder.b_dec - off.coder.b_dec))) > 1e-3, "not frozen at the encoder's input"


def test_auxk_reconstructs_the_residual_from_the_largest_dead_latents_alone() -> None:
    random = np.random.default_rng(1)
    z, W_dec, residual = random.normal(size=(8, 12)), random.normal(size=(12, 5)), random.normal(size=(8, 5))
    is_dead, acts = np.arange(12) < 7, np.zeros((8, 12))
    acts[3, 0] = 1.0
    counted = np.arange(12)[1:7]  # latent 0 was dead, but fires in this batch
    kept = np.zeros_like(z)
    for row in range(8):
        largest = counted[np.argsort(z[row, counted])[-2:]]
        kept[row, largest] = np.maximum(z[row, largest], 0)
    expected = ((residual - kept @ W_dec) ** 2).sum() / ((residual - residual.mean(axis=0)) ** 2).sum()

    def error(residual: Any, W_dec: Any) -> jax.Array:
        latents, encoder = Latents(jnp.asarray(z), jnp.asarray(acts)), (jnp.asarray(z), jnp.eye(12), jnp.zeros(12))
        return auxk_error(residual, latents, encoder, W_dec, jnp.asarray(is_dead), 2, DENSE)

    arguments = jnp.asarray(residual), jnp.asarray(W_dec)
    assert float(error(*arguments)) == pytest.approx(expected)
    by_residual, by_decoder = jax.grad(error, argnums=(0, 1))(*arguments)
    assert not jnp.any(by_residual)
    assert np.flatnonzero(jnp.any(by_decoder != 0, axis=1)).tolist() == np.flatnonzero(kept.any(axis=0)).tolist()
