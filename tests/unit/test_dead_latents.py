"""Latents that never fire: when they count as dead, and that every architecture can bring them back."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_service.architectures import ARCHITECTURES
from sae_service.kernels.dense import DENSE
from sae_service.sae.architecture import Architecture, LossContext
from sae_service.sae.coder import random_coder
from sae_service.sae.resampling import resample_coder
from sae_service.schema import ResamplingConfig
from sae_service.training.cohort import compiled_resample
from tests.planted import BATCH, D_IN, PLANTED, RESAMPLING, edited, fresh, numbers, planted_rows, same, steps

# What switches reviving on where the source has none.
SWITCHED_ON = {"jumprelu": {"pre_act_coefficient": 1.0, "initial_threshold": 0.05}}
BY_GRADIENTS = {kind: architecture for kind, architecture in ARCHITECTURES.items() if kind not in RESAMPLING}
SILENT = 10


@pytest.fixture(params=list(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return ARCHITECTURES[request.param]


def silenced(parameters: Any) -> Any:
    """The parameters with an encoder so short for the first latents that they hardly react."""
    return edited(parameters, "W_enc", lambda weights: weights.at[:, :SILENT].mul(0.01))


def never_firing(parameters: Any) -> Any:
    """The parameters with biases so low that the first latents react to no row."""
    return edited(parameters, "b_enc", lambda biases: biases.at[:SILENT].set(-5))


def test_a_latent_is_dead_after_as_many_tokens_as_asked_and_not_a_batch_earlier() -> None:
    architecture = ARCHITECTURES["standard"]
    state = fresh(architecture)
    W_enc, b_enc = state.parameters.W_enc.at[:, :SILENT].set(0), state.parameters.b_enc.at[:SILENT].set(-1)
    state = state.replace(parameters=state.parameters.replace(W_enc=W_enc, b_enc=b_enc))
    limit = int(numbers(architecture).dead_after_tokens)
    last = limit // BATCH
    state = steps(architecture, state, 0, last)
    assert not np.any(state.tokens_since_fired > limit)
    state = steps(architecture, state, last, last + 1)
    assert np.flatnonzero(state.tokens_since_fired > limit).tolist() == list(range(SILENT))
    assert int(state.tokens_since_fired[0]) == (last + 1) * BATCH


@pytest.mark.parametrize("architecture", RESAMPLING.values(), ids=RESAMPLING)
def test_resampling_starts_the_dead_latents_anew(architecture: Architecture) -> None:
    state = fresh(architecture)
    state = state.replace(tokens_since_fired=state.tokens_since_fired.at[:SILENT].set(5000))
    before = np.asarray(architecture.export(architecture.example, state.parameters).W_dec)
    structure, key = architecture.example.structure(), jax.random.key(1)
    state = compiled_resample(architecture, structure, state, numbers(architecture), PLANTED.served(BATCH, 0), key)
    after = np.asarray(architecture.export(architecture.example, state.parameters).W_dec)
    assert np.flatnonzero((before != after).any(axis=1)).tolist() == list(range(SILENT))


@pytest.mark.parametrize("architecture", BY_GRADIENTS.values(), ids=BY_GRADIENTS)
def test_who_does_not_resample_has_a_gradient_for_latents_that_do_not_fire(architecture: Architecture) -> None:
    config = architecture.example.model_copy(update=SWITCHED_ON.get(architecture.example.kind, {}))
    parameters, x = silenced(architecture.init(config, PLANTED.sites, jax.random.key(0))), planted_rows(BATCH)

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def measure(parameters: Any, numbers: dict[str, Any]) -> Any:
        context = LossContext(jnp.ones(()), jnp.arange(64) < SILENT, jnp.ones(()))
        output, _ = architecture.loss(config.with_numbers(numbers), parameters, same(x), context, DENSE)
        return output.total, output.fired

    gradients, fired = measure(parameters, config.numbers())
    assert not jnp.any(fired[:SILENT])
    found: list[Any] = []
    edited(gradients, "W_enc", found.append)
    assert np.all(np.abs(found[0][:, :SILENT]).sum(axis=0) > 0)


@pytest.mark.parametrize("n_dead", [SILENT, 60, BATCH - 1])
def test_latents_that_are_started_anew_differ_and_face_badly_reconstructed_rows(n_dead: int) -> None:
    coder = random_coder(jax.random.key(0), PLANTED.sites, 2 * BATCH)
    x, is_dead = jax.random.normal(jax.random.key(2), (BATCH, D_IN)), jnp.arange(2 * BATCH) < n_dead
    # Only odd rows are reconstructed badly.
    x_hat = jnp.where(jnp.arange(BATCH)[:, None] % 2, 0, x)
    fresh_coder, touched = resample_coder(coder, same(x), x_hat, is_dead, jax.random.key(1))
    cosines = np.asarray(fresh_coder.W_dec[:n_dead] @ x.T) / np.linalg.norm(x, axis=1)
    chosen = cosines.argmax(axis=1)
    np.testing.assert_allclose(cosines.max(axis=1), 1, atol=1e-5)
    assert len(set(chosen.tolist())) == n_dead
    assert np.all(chosen[: min(n_dead, BATCH // 2)] % 2 == 1)
    np.testing.assert_allclose(jnp.linalg.norm(fresh_coder.W_enc[:, :n_dead], axis=0), 0.2, rtol=1e-5)
    assert not np.any(fresh_coder.b_enc[:n_dead])
    np.testing.assert_array_equal(touched.b_enc, is_dead)


def test_where_more_are_dead_than_there_are_rows_the_others_stay_dead() -> None:
    architecture = ARCHITECTURES["standard_tied"]
    state = fresh(architecture)
    state = state.replace(tokens_since_fired=jnp.full(64, 5000))
    state = compiled_resample(
        architecture, architecture.example.structure(), state, numbers(architecture), PLANTED.served(40, 0), jax.random.key(1)
    )
    assert np.asarray(state.tokens_since_fired).tolist() == [0] * 40 + [5000] * 24


def revivals(architecture: Architecture, *, revive: bool) -> int:
    """How many of the silenced latents fire on new rows after 100 steps."""
    config = architecture.example.model_copy(update=SWITCHED_ON.get(architecture.example.kind, {}))
    if not revive:
        coefficients = [name for name in ("aux_coefficient", "pre_act_coefficient") if name in config.numbers()]
        config = config.model_copy(update=dict.fromkeys(coefficients, 0.0))
    chosen, resamples = dataclasses.replace(architecture, example=config), isinstance(config, ResamplingConfig)
    state = fresh(chosen)
    state = state.replace(parameters=(never_firing if resamples else silenced)(state.parameters))
    state = steps(chosen, state, 0, 50)
    if resamples and revive:
        state = compiled_resample(chosen, config.structure(), state, numbers(chosen), PLANTED.served(BATCH, 0), jax.random.key(1))
    state = steps(chosen, state, 50, 100)
    acts = chosen.export(config, state.parameters).encode(planted_rows(2048, seed=5000))
    return int(jnp.sum(jnp.any(acts[:, :SILENT] > 0, axis=0)))


def test_training_brings_dead_latents_back_and_without_reviving_none_comes(architecture: Architecture) -> None:
    # A third: what comes back has to be among the largest of a batch as well, to be above its threshold.
    assert revivals(architecture, revive=True) > SILENT / 3
    assert revivals(architecture, revive=False) == 0


def test_where_the_source_revives_nothing_it_is_off_by_default() -> None:
    assert ARCHITECTURES["jumprelu"].config(d_sae=64).pre_act_coefficient == 0  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    for kind in ("standard", "p_annealing"):
        assert ARCHITECTURES[kind].config(d_sae=64).resample_at == ()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
