"""What Adam remembers takes less memory where a job says so, and SAEs train with it, stop and go on."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from sae_service.architectures import ARCHITECTURES
from sae_service.continuation import Changes, continued
from sae_service.errors import InvalidSpec
from sae_service.schema import Moments, OptimizerConfig
from sae_service.spec import JobSpec
from sae_service.storage import checkpoint
from sae_service.storage.objects import Storage
from sae_service.training import memory, moments, optimizer
from sae_service.training.cohort import compiled_resample
from sae_service.training.step import TrainState, begun
from tests.planted import PLANTED, RESAMPLING, drawn, numbers, steps, trained
from tests.synthetic_jobs import job

SMALL = [Moments("bfloat16", "factored"), Moments("bfloat16", "int8")]
SHAPE = (40, 600)
RANDOM = np.random.default_rng(0)
SQUARES = jnp.asarray(RANDOM.normal(size=SHAPE) ** 2 * np.exp(RANDOM.normal(size=(1, SHAPE[1]))), jnp.float32)


def kept(full: jax.Array, second: str, step: int = 1) -> Any:
    form = moments.begun(full, Moments("float32", second))[1]
    return moments.closed(full, form, jnp.int32(step))


def fresh(kind: str, how: Moments) -> TrainState:
    architecture = ARCHITECTURES[kind]
    return begun(architecture, architecture.example, PLANTED.sites, drawn(architecture), how)


def test_8_bits_are_within_a_twelfth_of_each_number_and_right_on_average() -> None:
    found = np.stack([np.asarray(moments.opened(kept(SQUARES, "int8", step))) for step in range(100)])
    assert np.max(np.abs(np.log2(found / np.asarray(SQUARES)))) < 0.1251
    assert np.max(np.abs(np.log2(found).mean(axis=0) - np.log2(np.asarray(SQUARES)))) < 0.01


def test_zeros_stay_zeros_and_what_is_far_below_the_largest_is_not_lost() -> None:
    full = jnp.asarray([[0.0, 1e-12, 1.0, 1e-3] * 2])
    found = moments.opened(kept(full, "int8"))
    assert (found[0] == 0).tolist() == (full[0] == 0).tolist()
    assert float(found[0, 1]) >= 2.0**-32
    np.testing.assert_array_equal(moments.opened(kept(jnp.zeros(SHAPE), "int8")), 0)


def test_8_bits_follow_a_mean_that_falls_by_a_thousandth_in_a_step() -> None:
    state, truth = kept(SQUARES, "int8"), SQUARES
    largest = jnp.argmax(SQUARES, axis=1)

    @jax.jit
    def step(state: Any, index: jax.Array) -> Any:
        full = 0.999 * moments.opened(state)
        # The largest of each row does not fall, so that the scale of its block stays.
        full = full.at[jnp.arange(len(full)), largest].set(jnp.max(SQUARES, axis=1))
        return moments.closed(full, state, index)

    for index in range(2, 502):
        state, truth = step(state, jnp.int32(index)), 0.999 * truth
    found = np.log2(np.asarray(moments.opened(state))[:, :256] / np.asarray(truth)[:, :256])
    found = np.concatenate([np.delete(row, column) for row, column in zip(found, largest, strict=True) if column < 256])
    # Rounded to the nearest they would all be .72 too large; by random fractions they would scatter by .3.
    assert found.std() < 0.15
    assert abs(found.mean()) < 0.02


def test_factors_give_back_a_product_and_of_others_the_means() -> None:
    rows, columns = jnp.arange(1.0, 41)[:, None], jnp.arange(1.0, 601)
    np.testing.assert_allclose(moments.opened(kept(rows * columns, "factored")), rows * columns, rtol=1e-5)
    found = moments.opened(kept(SQUARES, "factored"))
    for axis in (0, 1):
        np.testing.assert_allclose(jnp.mean(found, axis=axis), jnp.mean(SQUARES, axis=axis), rtol=1e-4)


@pytest.mark.parametrize("second", ["float32", "factored", "int8"])
@pytest.mark.parametrize("axis", [0, 1])
def test_what_is_forgotten_is_0_and_the_rest_stays(second: str, axis: int) -> None:
    state = kept(SQUARES, second)
    mask = jnp.arange(SHAPE[axis]) < 10
    mask = mask if axis == 1 else mask[:, None]
    found, before = moments.opened(moments.forgotten(state, mask)), moments.opened(state)
    np.testing.assert_allclose(found, jnp.where(mask, 0, before), rtol=1e-5)
    everything = moments.opened(moments.forgotten(state, jnp.ones(SHAPE, bool)))
    np.testing.assert_array_equal(everything, 0)


@pytest.mark.parametrize(("second", "share"), [("float32", 1.0), ("factored", 0.0167), ("int8", 0.254)])
def test_they_take_the_memory_that_is_planned(second: str, share: float) -> None:
    parameters = {"W": jnp.zeros((64, 1024)), "b": jnp.zeros(8)}
    full = optimizer.init(parameters)
    found = jax.eval_shape(lambda: optimizer.init(parameters, Moments("bfloat16", second)))
    assert memory.size_of(found.mu) == pytest.approx(memory.size_of(full.mu) / 2, rel=0.001)
    assert memory.size_of(found.nu) == pytest.approx(share * memory.size_of(full.nu), rel=0.02)


@pytest.mark.parametrize("how", SMALL, ids="-".join)
def test_training_halves_the_error_with_each(how: Moments) -> None:
    _, (first, last) = trained(ARCHITECTURES["standard"], 200, state=fresh("standard", how))
    assert last < first / 2


@pytest.mark.parametrize("how", SMALL, ids="-".join)
def test_saving_and_loading_in_the_middle_changes_nothing(how: Moments, tmp_path: Path) -> None:
    architecture, storage = ARCHITECTURES["standard"], Storage(tmp_path.as_uri())
    whole = storage.publish("whole", checkpoint.to_files(steps(architecture, fresh("standard", how), 0, 12), {}))
    storage.publish("half", checkpoint.to_files(steps(architecture, fresh("standard", how), 0, 6), {}))
    loaded, _ = checkpoint.read(storage, "half", like=fresh("standard", how))
    assert storage.publish("resumed", checkpoint.to_files(steps(architecture, loaded, 6, 12), {})) == whole


@pytest.mark.parametrize("how", SMALL, ids="-".join)
def test_latents_that_start_anew_have_no_memory(how: Moments) -> None:
    architecture = RESAMPLING["standard"]
    state = steps(architecture, fresh("standard", how), 0, 12)
    state = state.replace(tokens_since_fired=jnp.where(jnp.arange(64) < 10, 5000, 0))
    given, served = numbers(architecture), PLANTED.served(64, 0)
    structure = architecture.example.structure()
    found = compiled_resample(architecture, structure, jax.tree.map(jnp.copy, state), given, served, jax.random.key(1)).optimizer
    for after, before in ((found.mu, state.optimizer.mu), (found.nu, state.optimizer.nu)):
        after, before = (moments.opened(part) for part in (after, before))
        assert not jnp.any(after.W_enc[:, :10])
        assert not jnp.any(after.W_dec[:10])
        np.testing.assert_allclose(after.W_enc[:, 10:], before.W_enc[:, 10:], rtol=1e-4)
        np.testing.assert_allclose(after.W_dec[10:], before.W_dec[10:], rtol=1e-4)


def test_how_a_moment_is_kept_cannot_change_when_a_job_goes_on() -> None:
    parent = JobSpec.model_validate(job(40))
    for name, value in (("first_moment", "bfloat16"), ("second_moment", "int8")):
        changes = Changes.model_validate({"tokens": 80 * 64, "saes": {"batchtopk": {"optimizer": {name: value}}}})
        with pytest.raises(InvalidSpec, match="cannot change when a job goes on") as caught:
            continued(parent, changes, 40 * 64)
        assert caught.value.param == f"/saes/batchtopk/optimizer/{name}"
        assert name not in caught.value.message
    same = Changes.model_validate({"tokens": 80 * 64, "saes": {"batchtopk": {"optimizer": {"second_moment": "float32"}}}})
    assert continued(parent, same, 40 * 64).saes == parent.saes


def test_a_first_moment_of_8_bits_is_refused_where_its_steps_would_be_lost() -> None:
    with pytest.raises(ValidationError, match=r"first_moment\n.*steps of a beta1 above 0.99 are lost; use float32, or lower beta1"):
        OptimizerConfig(lr=1e-3, beta1=0.995, first_moment="bfloat16")
    assert OptimizerConfig(lr=1e-3, beta1=0.99, first_moment="bfloat16").moments == Moments("bfloat16", "float32")
