"""The threshold of BatchTopK and Matryoshka leaves exactly k latents a row on the rows that it is set on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_service.architectures import ARCHITECTURES
from sae_service.kernels.selection import digit_counts, nth_largest
from sae_service.training.calibration import calibrated
from sae_service.training.step import Served
from tests.planted import BATCH, PLANTED, fresh, numbers, steps

CHOOSING = {kind: architecture for kind, architecture in ARCHITECTURES.items() if architecture.calibration is not None}


def batches() -> list[Served]:
    return [PLANTED.served(BATCH, seed) for seed in range(500, 505)]


@pytest.mark.parametrize("kind", CHOOSING)
@pytest.mark.parametrize("n_steps", [3, 40])
def test_a_calibrated_sae_keeps_k_latents_a_row(kind: str, n_steps: int) -> None:
    architecture = CHOOSING[kind]
    state = calibrated(
        architecture, architecture.example, steps(architecture, fresh(architecture), 0, n_steps), numbers(architecture), batches()
    )
    exported = architecture.export(architecture.example, state.parameters)
    acts = np.concatenate([np.asarray(exported.encode(served.read[0])) for served in batches()])
    assert (acts > 0).sum() == pytest.approx(4 * len(acts), abs=1), "an export may round a latent to the other side"


@pytest.mark.parametrize("kind", CHOOSING)
def test_calibration_changes_nothing_that_trains(kind: str) -> None:
    architecture = CHOOSING[kind]
    kept = steps(architecture, fresh(architecture), 0, 10)
    other = calibrated(
        architecture, architecture.example, steps(architecture, fresh(architecture), 0, 5), numbers(architecture), batches()
    )
    other = steps(architecture, other, 5, 10)
    for one, two in zip(jax.tree.leaves(kept), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(one, two)


def test_the_nth_largest_is_found_without_all_values_at_once() -> None:
    values = np.random.default_rng(0).normal(size=(7, 30, 40)).astype(np.float32)
    values[:, :, :5] = 0.25  # equal ones

    def count(shift: int, prefix: int) -> np.ndarray:
        return sum((np.asarray(digit_counts(jnp.asarray(part), shift, prefix), np.int64) for part in values), np.zeros(1, np.int64))

    ordered = np.sort(values.ravel())[::-1]
    n_positive = int((values > 0).sum())
    for n in (1, 2, 1000, 3000, n_positive):
        assert nth_largest(count, n) == ordered[n - 1]
    assert nth_largest(count, n_positive + 1) == 0
