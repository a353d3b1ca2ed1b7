"""What holds for every architecture, whichever files there are."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from sae_service.architectures import ARCHITECTURES
from sae_service.sae.architecture import Architecture
from sae_service.sae.inference import unscaled
from sae_service.schema import ResamplingConfig
from sae_service.storage import checkpoint
from sae_service.storage.objects import Storage
from sae_service.training import metrics
from sae_service.training.cohort import compiled_resample, compiled_step
from tests.planted import (
    BATCH,
    PLANTED,
    RESAMPLING,
    drawn,
    edited,
    exports_as_trained,
    fresh,
    numbers,
    planted_rows,
    same,
    steps,
    trained,
)  # fmt: skip

COEFFICIENTS = {
    "standard": "l1_coefficient",
    "standard_tied": "l1_coefficient",
    "gated": "l1_coefficient",
    "jumprelu": "l0_coefficient",
    "jumprelu_tanh": "sparsity_coefficient",
    "p_annealing": "lp_coefficient",
}


@pytest.fixture(params=list(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return ARCHITECTURES[request.param]


def test_training_halves_the_error_on_planted_features(architecture: Architecture) -> None:
    _, (first, last) = trained(architecture, 400)
    assert last < first / 2


def test_the_export_reconstructs_as_training_did(architecture: Architecture) -> None:
    state, _ = trained(architecture, 400 if architecture.calibration else 20)
    exports_as_trained(architecture, state.parameters, same(planted_rows(BATCH, seed=99)))
    exported = architecture.export(architecture.example, state.parameters)
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
    raw = unscaled(exported, {"hook": scale}, {"hook": scale})
    np.testing.assert_allclose(raw.decode(raw.encode(x / scale)) * scale, exported.decode(exported.encode(x)), atol=1e-4)


@pytest.mark.parametrize("tokens_since_fired", [0, 5000])
@pytest.mark.parametrize("offset", [-1e4, 1e4])
def test_all_dead_and_all_alive_are_finite(architecture: Architecture, offset: float, tokens_since_fired: int) -> None:
    state = fresh(architecture)
    counts = state.tokens_since_fired + tokens_since_fired
    parameters = edited(state.parameters, "b_enc", lambda biases: biases + offset)
    state = state.replace(parameters=parameters, tokens_since_fired=counts)
    given, served = numbers(architecture), PLANTED.served(BATCH, 0)
    state = compiled_step(architecture, architecture.example.structure(), None, state, given, served)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(state))
    assert (metrics.read(state.window, 1)["l0"] == 0) == (offset < 0)


@pytest.mark.parametrize(("kind", "coefficient"), COEFFICIENTS.items())
def test_ten_times_the_coefficient_makes_the_penalty_ten_times_as_large(kind: str, coefficient: str) -> None:
    architecture, penalties = ARCHITECTURES[kind], list[float]()
    given, structure = numbers(architecture), architecture.example.structure()
    for factor in (1, 10):
        changed = given.replace(architecture=given.architecture | {coefficient: factor * given.architecture[coefficient]})
        state = compiled_step(architecture, structure, None, fresh(architecture), changed, PLANTED.served(BATCH, 0))
        penalties.append(metrics.read(state.window, 1)["sparsity"])
    assert penalties[1] == pytest.approx(10 * penalties[0], rel=1e-4)
    assert penalties[0] > 0


def test_other_numbers_do_not_compile_again(architecture: Architecture) -> None:
    trained(architecture, 2)
    compiled = compiled_step._cache_size()
    trained(architecture, 2, lr=1e-4)
    assert compiled_step._cache_size() == compiled


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


def test_saving_and_loading_in_the_middle_changes_nothing(architecture: Architecture, tmp_path: Path) -> None:
    storage = Storage(tmp_path.as_uri())
    whole = storage.publish("whole", checkpoint.to_files(steps(architecture, fresh(architecture), 0, 40), {}))
    storage.publish("half", checkpoint.to_files(steps(architecture, fresh(architecture), 0, 20), {}))
    loaded, _ = checkpoint.read(storage, "half", like=fresh(architecture))
    resumed = steps(architecture, loaded, 20, 40)
    assert storage.publish("resumed", checkpoint.to_files(resumed, {})) == whole


def test_fitting_to_rows_keeps_the_form_and_is_finite(architecture: Architecture) -> None:
    parameters = drawn(architecture)
    fitted = architecture.fit_to_rows(architecture.example, parameters, same(planted_rows(200) + 1))
    assert jax.tree.structure(fitted) == jax.tree.structure(parameters)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(fitted))


def test_whoever_can_resample_says_when_and_nobody_else_does(architecture: Architecture) -> None:
    assert (architecture.resample is not None) == isinstance(architecture.example, ResamplingConfig)


@pytest.mark.parametrize("architecture", RESAMPLING.values(), ids=RESAMPLING)
def test_resampling_starts_only_dead_latents_anew(architecture: Architecture) -> None:
    state = steps(architecture, fresh(architecture), 0, 5)
    is_dead = jnp.arange(64) < 10
    state = state.replace(tokens_since_fired=jnp.where(is_dead, 5000, 0))
    before = jax.tree.map(jnp.copy, state)
    structure, given, served = architecture.example.structure(), numbers(architecture), PLANTED.served(BATCH, 0)
    after = compiled_resample(architecture, structure, state, given, served, jax.random.key(1))
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
