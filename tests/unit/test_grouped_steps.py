"""SAEs that one call steps become what they become one by one, whatever they differ in."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_service.architectures import ARCHITECTURES
from sae_service.sae.architecture import Architecture
from sae_service.schema import Moments
from sae_service.training.cohort import Cohort, Way
from sae_service.training.grouping import Group
from sae_service.training.optimizer import FULL
from sae_service.training.placement import Place, mesh_of
from sae_service.training.states import States
from sae_service.training.step import Numbers, TrainState, begun
from tests.planted import BATCH, PLANTED, drawn, edited, numbers

NAMES = ("a", "b", "c")
PLACE = Place(mesh_of(jax.devices()[:1]))
N_STEPS = 4


def cohort_of(architecture: Architecture, n_slots: int | None = None) -> Cohort:
    return Cohort(architecture, architecture.example.structure(), PLANTED.sites, n_slots, "float32")


def different(architecture: Architecture, kept: Moments) -> tuple[dict[str, TrainState], dict[str, Numbers]]:
    """Three SAEs with other weights, learning rates and coefficients, none of whose latents, half of them, and all are dead."""
    states, given = {}, {}
    for index, name in enumerate(NAMES):
        parameters = edited(drawn(architecture), "b_enc", lambda biases, index=index: biases + 0.01 * index)
        state = begun(architecture, architecture.example, PLANTED.sites, jax.tree.map(jnp.copy, parameters), kept)
        states[name] = state.replace(tokens_since_fired=jnp.where(jnp.arange(64) < 32 * index, 5000, 0))
        found = numbers(architecture, lr=1e-3 * (1 + index))
        given[name] = found.replace(architecture={key: value * (1 + index / 4) for key, value in found.architecture.items()})
    return states, given


def after(
    architecture: Architecture, way: Way, n_slots: int | None = None, kept: Moments = FULL
) -> dict[str, TrainState]:  # fmt: skip
    """The states of the three after some steps."""
    states, given = different(architecture, kept)
    parts = [(name,) for name in NAMES] if way == "alone" else [NAMES]
    training = States([Group(cohort_of(architecture, n_slots), PLACE, part, way) for part in parts], states, given)
    for step in range(N_STEPS):
        for stepped in training.groups:
            stepped.step(PLANTED.served(BATCH, step))
    return dict(training)


def are_equal(actual: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def are_close(actual: Any, expected: Any) -> None:
    """Equal, but for what another order of operations rounds otherwise."""

    def close(found: Any, wanted: Any) -> None:
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)

    jax.tree.map(close, actual, expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_a_loop_and_all_at_once_lead_to_the_same_states(architecture: Architecture) -> None:
    expected = after(architecture, "alone")
    are_close(after(architecture, "looped"), expected)
    are_close(after(architecture, "vectorised"), expected)


@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
@pytest.mark.parametrize("n_slots", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_each_sae_of_a_loop_falls_back_on_the_dense_operations_for_itself(kind: str, n_slots: int) -> None:
    expected = after(ARCHITECTURES[kind], "alone", n_slots)
    are_close(after(ARCHITECTURES[kind], "looped", n_slots), expected)


@pytest.mark.parametrize("second", ["factored", "int8"])
def test_moments_that_are_kept_in_less_memory_are_kept_for_each(second: str) -> None:
    kept = Moments("bfloat16", second)
    expected, actual = (after(ARCHITECTURES["topk"], way, kept=kept) for way in ("alone", "looped"))
    assert jax.tree.map(jnp.shape, actual) == jax.tree.map(jnp.shape, expected)
    for name in NAMES:
        are_close(actual[name].parameters, expected[name].parameters)


def test_a_state_that_is_set_is_that_of_its_sae_alone() -> None:
    states, given = different(ARCHITECTURES["topk"], FULL)
    expected = jax.tree.map(jnp.copy, states)
    training = States([Group(cohort_of(ARCHITECTURES["topk"]), PLACE, NAMES, "looped")], states, given)
    assert states == {}, "nothing is kept twice"
    are_equal(dict(training), expected)
    training["b"] = training["b"].replace(n_steps=jnp.int32(7))
    are_equal(dict(training), expected | {"b": expected["b"].replace(n_steps=jnp.int32(7))})
