"""Rows with planted features, and training steps on them, for tests of what holds for every architecture."""

import jax
import jax.numpy as jnp
import numpy as np

from sae_service.sae.architecture import Architecture
from sae_service.training.optimizer import schedule
from sae_service.training.step import Numbers, TrainState, init_state, train_step

D_IN, BATCH = 16, 64


def planted_rows(n_rows: int, seed: int = 0) -> jax.Array:
    """Sparse combinations of 24 fixed directions, with E‖x‖² about 1."""
    random = np.random.default_rng(7)
    directions = random.normal(size=(24, D_IN))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    random = np.random.default_rng(seed)
    strengths = random.uniform(0.5, 1.5, (n_rows, 24)) * (random.uniform(size=(n_rows, 24)) < 0.1)
    return jnp.asarray(strengths @ directions / 1.6, jnp.float32)


def numbers(architecture: Architecture, lr: float = 3e-3, n_steps: int = 400) -> Numbers:
    """The example's numbers without warm-ups; a latent is dead after 1000 tokens."""
    config = architecture.optimizer.model_copy(update={"lr": lr, "lr_warm_up": 0, "lr_decay": 0, "sparsity_warm_up": 0})
    return Numbers(
        architecture={name: jnp.float32(value) for name, value in architecture.example.numbers().items()},
        schedule=schedule(config, n_steps),
        activation_scale=jnp.float32(1),
        dead_after_tokens=jnp.int32(1000),
    )


def fresh(architecture: Architecture) -> TrainState:
    """The state before the first step."""
    return init_state(architecture, architecture.example, D_IN, jax.random.key(0))


def steps(architecture: Architecture, state: TrainState, first: int, last: int, lr: float = 3e-3) -> TrainState:
    """The state after the steps from `first` to `last`, each on rows of its own."""
    given = numbers(architecture, lr)
    for step in range(first, last):
        rows = planted_rows(BATCH, seed=step)
        state = train_step(architecture, architecture.example.structure(), state, given, rows)
    return state
