"""What holds for every architecture, whichever files there are."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from sae_service.architectures import ARCHITECTURES
from sae_service.numerics import squared_error
from sae_service.sae.architecture import Architecture, LossContext
from sae_service.sae.inference import unscaled
from sae_service.schema import ResamplingConfig
from sae_service.storage import checkpoint
from sae_service.training import metrics
from sae_service.training.step import TrainState, resample_step, train_step
from tests.planted import BATCH, D_IN, fresh, numbers, planted_rows, steps


@pytest.fixture(params=list(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return ARCHITECTURES[request.param]


def trained(architecture: Architecture, n_steps: int, lr: float = 3e-3) -> tuple[TrainState, list[float]]:
    state, losses = fresh(architecture), []
    for step in range(n_steps):
        state = steps(architecture, state, step, step + 1, lr)
        if step in (0, n_steps - 1):
            losses.append(metrics.read(state.window, step)["fvu"])
            state = state.replace(window=metrics.empty(tuple(state.window.terms), D_IN))
    return state, losses


def test_training_halves_the_error_on_planted_features(architecture: Architecture) -> None:
    _, (first, last) = trained(architecture, 400)
    assert last < first / 2


def test_the_export_reconstructs_as_training_did(architecture: Architecture) -> None:
    state, _ = trained(architecture, 400 if architecture.chooses_over_the_batch else 20)
    x = planted_rows(BATCH, seed=99)
    context = LossContext(jnp.ones(()), jnp.zeros(64, bool), jnp.ones(()))
    output, _ = architecture.loss(architecture.example, state.parameters, x, context)
    exported = architecture.export(architecture.example, state.parameters)
    acts = exported.encode(x)
    if architecture.chooses_over_the_batch:
        # One threshold takes the place of the choice: the same number of latents, nearly the same error.
        assert float(jnp.sum(acts > 0)) == pytest.approx(float(jnp.sum(output.acts > 0)), rel=0.15)
        error, trained_error = squared_error(x, exported.decode(acts)), squared_error(x, output.x_hat)
        assert float(error) == pytest.approx(float(trained_error), rel=0.25)
    else:
        np.testing.assert_allclose(exported.decode(acts), output.x_hat, atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(exported.W_dec, axis=1), 1, atol=1e-5)


def test_encoding_a_row_does_not_depend_on_its_neighbours(architecture: Architecture) -> None:
    state, _ = trained(architecture, 5)
    x = planted_rows(8)
    exported = architecture.export(architecture.example, state.parameters)
    whole = exported.encode(x)
    for index in range(8):
        np.testing.assert_allclose(exported.encode(x[index : index + 1])[0], whole[index], atol=1e-6)


def test_unscaling_gives_the_same_sae_for_raw_rows(architecture: Architecture) -> None:
    state, _ = trained(architecture, 5)
    x, scale = planted_rows(BATCH), 0.05
    exported = architecture.export(architecture.example, state.parameters)
    raw = unscaled(exported, scale)
    np.testing.assert_allclose(raw.decode(raw.encode(x / scale)) * scale, exported.decode(exported.encode(x)), atol=1e-4)


def shifted(parameters: Any, offset: float) -> Any:
    """The parameters with every encoder bias moved."""
    if hasattr(parameters, "coder"):
        return parameters.replace(coder=shifted(parameters.coder, offset))
    names = [name for name in ("b_enc", "b_gate") if hasattr(parameters, name)]
    return parameters.replace(**{name: getattr(parameters, name) + offset for name in names})


@pytest.mark.parametrize("tokens_since_fired", [0, 5000])
@pytest.mark.parametrize("offset", [-1e4, 1e4])
def test_all_dead_and_all_alive_are_finite(architecture: Architecture, offset: float, tokens_since_fired: int) -> None:
    state = fresh(architecture)
    counts = state.tokens_since_fired + tokens_since_fired
    state = state.replace(parameters=shifted(state.parameters, offset), tokens_since_fired=counts)
    state = train_step(architecture, architecture.example.structure(), state, numbers(architecture), planted_rows(BATCH))
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(state))
    assert (metrics.read(state.window, 1)["l0"] == 0) == (offset < 0)


def test_other_numbers_do_not_compile_again(architecture: Architecture) -> None:
    trained(architecture, 2)
    compiled = train_step._cache_size()
    trained(architecture, 2, lr=1e-4)
    assert train_step._cache_size() == compiled


def test_its_parameters_are_never_taken_for_anothers(architecture: Architecture) -> None:
    # JAX keeps what it has traced by trees, and takes two dataclasses with as many fields for equal.
    mine = fresh(architecture).parameters
    others = [fresh(other).parameters for other in ARCHITECTURES.values()]
    alike = [type(other) for other in others if jax.tree.structure(other) == jax.tree.structure(mine)]
    assert set(alike) == {type(mine)}


def test_every_parameter_moves(architecture: Architecture) -> None:
    before = fresh(architecture).parameters
    after = trained(architecture, 200)[0].parameters
    assert all(not jnp.array_equal(a, b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))


def test_the_config_survives_json_and_keeps_its_numbers_apart(architecture: Architecture) -> None:
    example = architecture.example
    assert architecture.config.model_validate_json(example.model_dump_json()) == example
    assert example.structure().with_numbers(example.numbers()) == example


def test_every_number_is_traced_whether_it_is_given_or_not(architecture: Architecture) -> None:
    floats = {name for name, field in architecture.config.model_fields.items() if field.annotation is float}
    assert floats <= architecture.config.model_validate({"d_sae": 64}).numbers().keys()


def test_the_config_refuses_what_it_does_not_know(architecture: Architecture) -> None:
    with pytest.raises(ValidationError, match="unknown_key"):
        architecture.config.model_validate({"d_sae": 64, "unknown_key": 1})
    for name in architecture.example.numbers():
        with pytest.raises(ValidationError, match="finite"):
            architecture.config.model_validate({"d_sae": 64, name: float("nan")})


def test_saving_and_loading_in_the_middle_changes_nothing(architecture: Architecture) -> None:
    whole = steps(architecture, fresh(architecture), 0, 40)
    half = checkpoint.to_files(steps(architecture, fresh(architecture), 0, 20), {})
    loaded, _ = checkpoint.from_files(half, like=fresh(architecture))
    resumed = steps(architecture, loaded, 20, 40)
    assert checkpoint.to_files(resumed, {}) == checkpoint.to_files(whole, {})


def test_fitting_to_rows_keeps_the_form_and_is_finite(architecture: Architecture) -> None:
    parameters = architecture.init(architecture.example, D_IN, jax.random.key(0))
    fitted = architecture.fit_to_rows(architecture.example, parameters, planted_rows(200) + 1)
    assert jax.tree.structure(fitted) == jax.tree.structure(parameters)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(fitted))


def test_whoever_can_resample_says_when_and_starts_only_dead_latents_anew(architecture: Architecture) -> None:
    assert (architecture.resample is not None) == isinstance(architecture.example, ResamplingConfig)
    if architecture.resample is None:
        return
    state = steps(architecture, fresh(architecture), 0, 5)
    is_dead = jnp.arange(64) < 10
    state = state.replace(tokens_since_fired=jnp.where(is_dead, 5000, 0))
    before = jax.tree.map(jnp.copy, state)
    key = jax.random.key(1)
    after = resample_step(architecture, architecture.example.structure(), state, numbers(architecture), planted_rows(BATCH), key)
    old, new = (architecture.export(architecture.example, item.parameters) for item in (before, after))
    same = np.all(np.asarray(old.W_dec) == np.asarray(new.W_dec), axis=1)
    assert same.tolist() == (~is_dead).tolist()
    np.testing.assert_allclose(jnp.linalg.norm(new.W_dec, axis=1), 1, atol=1e-5)
    for moments, then in ((before.optimizer.mu, after.optimizer.mu), (before.optimizer.nu, after.optimizer.nu)):
        for old_moment, moment in zip(jax.tree.leaves(moments), jax.tree.leaves(then), strict=True):
            # Latents are the columns of encoders and else the first axis; what belongs to none is kept.
            of_dead = is_dead if moment.shape[-1:] == (64,) else is_dead[:, None] if 64 in moment.shape else False
            np.testing.assert_array_equal(moment, jnp.where(of_dead, 0, old_moment))
            assert jnp.any(old_moment != 0) or old_moment.ndim == 0
    assert int(jnp.sum(after.tokens_since_fired)) == 0
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(steps(architecture, after, 5, 10)))
