"""Steps by the sparse operations are steps by the dense ones, whether they begin with them or fall back on them."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_service.architectures import ARCHITECTURES
from sae_service.sae.architecture import Architecture
from sae_service.storage import checkpoint
from sae_service.storage.objects import Storage
from sae_service.training.step import TrainState
from tests.planted import CROSSCODED, TRANSCODED, Task, fitted, fresh, steps

SPARSE = {kind: architecture for kind, architecture in ARCHITECTURES.items() if architecture.n_active is not None}
SOME, FEW = 32, 1
"""Slots that suffice for some of the steps, so that all branches are taken, and for none."""


def with_dead(state: TrainState, n_dead: int) -> TrainState:
    return state.replace(tokens_since_fired=jnp.where(jnp.arange(64) < n_dead, 5000, state.tokens_since_fired))


def are_close(actual: TrainState, expected: TrainState) -> None:
    def close(found: Any, wanted: Any) -> None:
        np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-5)

    jax.tree.map(close, actual.replace(most=0), expected.replace(most=0))


@pytest.mark.parametrize("architecture", SPARSE.values(), ids=SPARSE)
def test_they_lead_to_the_same_state(architecture: Architecture) -> None:
    expected = steps(architecture, with_dead(fresh(architecture), 5), 0, 10)
    actual = steps(architecture, with_dead(fresh(architecture), 5), 0, 10, n_slots=SOME)
    are_close(actual, expected)


@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_without_enough_slots_they_do_too(kind: str) -> None:
    expected = steps(SPARSE[kind], fresh(SPARSE[kind]), 0, 10)
    actual = steps(SPARSE[kind], fresh(SPARSE[kind]), 0, 10, n_slots=FEW)
    assert int(actual.most) > FEW
    are_close(actual, expected)


@pytest.mark.parametrize("task", [TRANSCODED, CROSSCODED], ids=["transcoder", "crosscoder"])
def test_those_of_a_transcoder_or_a_crosscoder_do_too(task: Task) -> None:
    topk = ARCHITECTURES["topk"]
    expected = steps(topk, fitted(topk, task), 0, 10, task=task)
    are_close(steps(topk, fitted(topk, task), 0, 10, task=task, n_slots=SOME), expected)


@pytest.mark.parametrize("architecture", [SPARSE["topk"], SPARSE["jumprelu"]], ids=["topk", "jumprelu"])
def test_saving_and_loading_in_the_middle_changes_nothing(architecture: Architecture, tmp_path: Path) -> None:
    storage = Storage(tmp_path.as_uri())
    whole = storage.publish("whole", checkpoint.to_files(steps(architecture, fresh(architecture), 0, 20, n_slots=SOME), {}))
    storage.publish("half", checkpoint.to_files(steps(architecture, fresh(architecture), 0, 10, n_slots=SOME), {}))
    loaded, _ = checkpoint.read(storage, "half", like=fresh(architecture))
    resumed = steps(architecture, loaded, 10, 20, n_slots=SOME)
    assert storage.publish("resumed", checkpoint.to_files(resumed, {})) == whole
