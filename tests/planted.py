"""Rows with planted features, and training steps on them, for tests of what holds for every architecture."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_service.architectures import ARCHITECTURES
from sae_service.kernels.dense import DENSE
from sae_service.numerics import squared_error
from sae_service.sae.architecture import Architecture, LossContext, Rows
from sae_service.sae.sites import Sites, at
from sae_service.training import metrics
from sae_service.training.cohort import compiled_step
from sae_service.training.optimizer import schedule
from sae_service.training.step import Numbers, Served, TrainState, begun, scaled

D_IN, D_OUT, BATCH = 16, 12, 64
RESAMPLING = {kind: architecture for kind, architecture in ARCHITECTURES.items() if architecture.resample is not None}


def strengths(n_rows: int, seed: int) -> np.ndarray[Any, Any]:
    """How strongly each of 24 features is in each row; mostly not at all."""
    random = np.random.default_rng(seed)
    return random.uniform(0.5, 1.5, (n_rows, 24)) * (random.uniform(size=(n_rows, 24)) < 0.1)


def directions(width: int, seed: int) -> np.ndarray[Any, Any]:
    """A direction for each feature."""
    found = np.random.default_rng(seed).normal(size=(24, width))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def planted_rows(n_rows: int, seed: int = 0) -> jax.Array:
    """Sparse combinations of 24 fixed directions, with E‖x‖² about 1."""
    return jnp.asarray(strengths(n_rows, seed) @ directions(D_IN, 7) / 1.6, jnp.float32)


def answers(n_rows: int, seed: int = 0) -> jax.Array:
    """What a transcoder is to write for the planted rows: a fixed linear map of them, and their features elsewhere."""
    mapped = planted_rows(n_rows, seed) @ jnp.asarray(np.random.default_rng(8).normal(size=(D_IN, D_OUT)) / D_IN, jnp.float32)
    return mapped + jnp.asarray(strengths(n_rows, seed) @ directions(D_OUT, 9) / 1.6, jnp.float32)


def same(x: jax.Array) -> Rows:
    """The rows of an autoencoder, which writes what it reads."""
    return Rows(x, x)


@dataclass(frozen=True)
class Task:
    """Where an SAE reads and writes, and its rows: (count, seed) -> what the stream serves."""

    sites: Sites
    served: Callable[[int, int], Served]


PLANTED = Task(at("hook", D_IN), lambda n_rows, seed: Served((planted_rows(n_rows, seed),)))
TRANSCODED = Task(
    Sites((("in", D_IN),), (("out", D_OUT),)), lambda n_rows, seed: Served((planted_rows(n_rows, seed),), (answers(n_rows, seed),))
)
BESIDE = (("early", 10), ("late", 6))
CROSSCODED = Task(
    Sites(BESIDE, BESIDE), lambda n_rows, seed: Served((planted_rows(n_rows, seed)[:, :10], planted_rows(n_rows, seed)[:, 10:]))
)


def numbers(architecture: Architecture, lr: float = 3e-3, n_steps: int = 400, sites: Sites = PLANTED.sites) -> Numbers:
    """The example's numbers without warm-ups; a latent is dead after 1000 tokens."""
    config = architecture.optimizer.model_copy(update={"lr": lr, "lr_warm_up": 0, "lr_decay": 0, "sparsity_warm_up": 0})
    return Numbers(
        architecture={name: jnp.float32(value) for name, value in architecture.example.numbers().items()},
        schedule=schedule(config, n_steps),
        read_scale=jnp.ones(sites.d_read),
        write_scale=jnp.ones(sites.d_write),
        dead_after_tokens=jnp.int32(1000),
    )


def rows_of(architecture: Architecture, task: Task, n_rows: int = BATCH, seed: int = 99) -> Rows:
    """Rows of a task as a step takes them."""
    return scaled(task.served(n_rows, seed), numbers(architecture, sites=task.sites))


def drawn(architecture: Architecture, sites: Sites = PLANTED.sites) -> Any:
    """The example's parameters as they are drawn."""
    return architecture.init(architecture.example, sites, jax.random.key(0))


def fresh(architecture: Architecture, sites: Sites = PLANTED.sites) -> TrainState:
    """The state before the first step."""
    return begun(architecture, architecture.example, sites, drawn(architecture, sites))


def fitted(architecture: Architecture, task: Task) -> TrainState:
    """The state before the first step, fitted to rows as in a job."""
    parameters = architecture.fit_to_rows(
        architecture.example, drawn(architecture, task.sites), rows_of(architecture, task, 1000, seed=1000)
    )
    # A job does this in one compiled function, whose results have each a buffer of their own.
    return begun(architecture, architecture.example, task.sites, jax.tree.map(jnp.copy, parameters))


def steps(
    architecture: Architecture, state: TrainState, first: int, last: int, lr: float = 3e-3, task: Task = PLANTED,
    n_slots: int | None = None,
) -> TrainState:  # fmt: skip
    """The state after the steps from `first` to `last`, each on rows of its own; by the dense operations without `n_slots`."""
    given = numbers(architecture, lr, sites=task.sites)
    for step in range(first, last):
        state = compiled_step(architecture, architecture.example.structure(), n_slots, state, given, task.served(BATCH, step))
    return state


def edited(parameters: Any, name: str, change: Callable[[Any], Any]) -> Any:
    """The parameters with the one of this name changed, however deep it is; there must be one."""
    changed: list[Any] = []

    def one(path: tuple[Any, ...], leaf: Any) -> Any:
        if path[-1].name != name:
            return leaf
        changed.append(path)
        return change(leaf)

    parameters = jax.tree_util.tree_map_with_path(one, parameters)
    assert len(changed) == 1
    return parameters


def trained(
    architecture: Architecture, n_steps: int, lr: float = 3e-3, task: Task = PLANTED, state: TrainState | None = None
) -> tuple[TrainState, list[float]]:
    """The state after some steps, and the FVU of the first and of the last of them."""
    state, losses = state or fresh(architecture, task.sites), []
    for step in range(n_steps):
        state = steps(architecture, state, step, step + 1, lr, task)
        if step in (0, n_steps - 1):
            losses.append(metrics.read(state.window, step)["fvu"])
            state = state.replace(window=metrics.empty(tuple(state.window.terms), task.sites.d_write))
    return state, losses


def context(d_sae: int = 64, progress: float = 0.0) -> LossContext:
    """That of a loss without warm-up and without dead latents."""
    return LossContext(jnp.ones(()), jnp.zeros(d_sae, bool), jnp.asarray(progress))


def written(architecture: Any, config: Any, parameters: Any, rows: Rows, given: LossContext) -> jax.Array:
    """What training writes, y_hat: the gradient of the squared error by y is 2 (y - y_hat)."""

    def error(y: jax.Array) -> jax.Array:
        return architecture.loss(config, parameters, Rows(rows.x, y), given, DENSE)[0].squared_error

    return rows.y - jax.grad(error)(rows.y) / 2


def exports_as_trained(architecture: Architecture, parameters: Any, rows: Rows) -> None:
    """Asserts that the export writes for rows what training does."""
    example, given = architecture.example, context(progress=1.0)
    output, _ = architecture.loss(example, parameters, rows, given, DENSE)
    y_hat = written(architecture, example, parameters, rows, given)
    exported = architecture.export(example, parameters)
    acts = exported.encode(rows.x)
    if architecture.calibration is not None:
        # One threshold takes the place of the choice: the same number of latents, nearly the same error.
        assert float(jnp.sum(acts > 0)) == pytest.approx(float(output.n_active), rel=0.15)
        error, trained_error = squared_error(rows.y, exported.decode(acts, rows.x)), squared_error(rows.y, y_hat)
        assert float(error) == pytest.approx(float(trained_error), rel=0.25)
    else:
        np.testing.assert_allclose(exported.decode(acts, rows.x), y_hat, atol=1e-5)
