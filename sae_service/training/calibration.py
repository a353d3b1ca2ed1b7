"""The threshold that takes the place of a batch's choice: exact over many rows, of which one batch at a time is encoded."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int

from sae_service import hosts
from sae_service.kernels.selection import N_DIGITS, digit_counts, nth_largest
from sae_service.sae.architecture import Architecture
from sae_service.schema import ArchitectureConfig
from sae_service.training.step import Numbers, Served, TrainState, scaled


def calibrated(
    architecture: Architecture, config: ArchitectureConfig, state: TrainState, numbers: Numbers,
    batches: Sequence[Served],
) -> TrainState:  # fmt: skip
    """The state with the threshold above which, in those batches, k latents a row are active on average."""
    calibration = architecture.calibration
    assert calibration is not None
    n_rows = sum(len(served.read[0]) for served in batches)
    assert n_rows, "a threshold is set on rows"

    def count(shift: int, prefix: int) -> Int[np.ndarray, " n_digits"]:
        total, place = np.zeros(N_DIGITS, np.int64), (np.uint32(shift), np.uint32(prefix))
        for served in batches:
            total += hosts.fetched(_counts(architecture, config.structure(), state.parameters, numbers, served, place))
        return total

    # What is active is above the threshold: the largest of those that are not.
    threshold = np.float32(nth_largest(count, round(calibration.k(config) * n_rows) + 1))
    placed = hosts.put(threshold, state.n_steps.sharding)
    return state.replace(parameters=calibration.with_threshold(state.parameters, placed))


@partial(jax.jit, static_argnums=(0, 1))
def _counts(
    architecture: Architecture, structure: ArchitectureConfig, parameters: Any, numbers: Numbers, served: Served,
    place: tuple[Array, Array],
) -> Int[Array, " n_digits"]:  # fmt: skip
    assert architecture.calibration is not None
    config = structure.with_numbers(numbers.architecture)
    return digit_counts(architecture.calibration.values(config, parameters, scaled(served, numbers)), *place)
