"""Steps of SAEs that are split over eight devices, beside the same steps on one. Run by a test, in a process that has eight.

Its arguments are cases such as `topk:autoencoder:latents`. It prints a line of JSON for each.
"""

import functools
import json
import math
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_service.architectures import ARCHITECTURES
from sae_service.training.placement import SPLIT_AXES, Place, mesh_of
from sae_service.training.sharded import compiled_step, n_candidates
from sae_service.training.step import TrainState
from tests.planted import BATCH, CROSSCODED, PLANTED, TRANSCODED, fresh, numbers, steps

N_STEPS = 4
MOVING = re.compile(r"= (.*?) (?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
"""The result of an operation that moves values between devices."""
TASKS = {"autoencoder": PLANTED, "transcoder": TRANSCODED, "crosscoder": CROSSCODED}


@functools.cache
def begun(kind: str, task: str) -> TrainState:
    """The state before the first step, on the host; a tenth of the latents are dead."""
    state = jax.jit(lambda: fresh(ARCHITECTURES[kind], TASKS[task].sites))()
    is_dead = jnp.arange(len(state.tokens_since_fired)) % 10 == 3
    return jax.device_get(state.replace(tokens_since_fired=jnp.where(is_dead, 5000, state.tokens_since_fired)))


@functools.cache
def on_one_device(kind: str, task: str) -> TrainState:
    """The state after the steps on one device."""
    return jax.device_get(steps(ARCHITECTURES[kind], jax.device_put(begun(kind, task)), 0, N_STEPS, task=TASKS[task]))


def split_steps(kind: str, task: str, place: Place) -> tuple[TrainState, str]:
    """The state after the steps at a place, and the text of the compiled program."""
    architecture, sites = ARCHITECTURES[kind], TASKS[task].sites
    state, given = place.put(begun(kind, task)), place.put(numbers(architecture, sites=sites))
    how = architecture, architecture.example.structure(), place, n_candidates(architecture, architecture.example)
    rows = [jax.device_put(TASKS[task].served(BATCH, step), place.rows) for step in range(N_STEPS)]
    compiled = compiled_step.lower(*how, state, given, rows[0]).compile()
    for served in rows:
        state = compiled(state, given, served)
    return state, compiled.as_text()


def values_in(shape: str) -> int:
    """The number of values in an array of a shape, such as 64,16."""
    return math.prod(map(int, filter(None, shape.split(","))))


def compared(kind: str, task: str, shard: str) -> dict[str, Any]:
    """The largest differences between the two, the shape of the largest array that moves between devices, and how many
    arrays with an axis of latents are whole on every device.
    """
    found, text = split_steps(kind, task, Place(mesh_of(jax.devices()), SPLIT_AXES[shard]))
    differences = jax.tree.map(lambda one, other: float(np.max(np.abs(np.asarray(one) - other))), found, on_one_device(kind, task))
    moved = [shape for result in MOVING.findall(text) for shape in re.findall(r"\w+\[([\d,]*)\]", result)]
    d_sae = ARCHITECTURES[kind].example.d_sae
    return {
        "parameters": max(jax.tree.leaves(differences.parameters)),
        "since_fired": differences.tokens_since_fired,
        "moved": sorted(moved, key=values_in)[-1],
        "whole": sum(d_sae in leaf.shape and leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(found)),
    }


if __name__ == "__main__":
    for case in sys.argv[1:]:
        sys.stdout.write(json.dumps({"case": case} | compared(*case.split(":"))) + "\n")
        sys.stdout.flush()
