"""One training step: loss, gradient, update, constraint, counts and sums, compiled as one function."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from sae_service.pytree import PyTree
from sae_service.sae.architecture import Architecture, LossContext
from sae_service.schema import ArchitectureConfig
from sae_service.training import metrics, optimizer

COUNT_LIMIT = 1 << 30


class TrainState(PyTree):
    """All that changes during training, as one pytree. `n_steps` counts finished steps."""

    parameters: Any
    optimizer: optax.OptState
    tokens_since_fired: Int[Array, " d_sae"]
    n_steps: Int[Array, ""]
    window: metrics.Window


class Numbers(PyTree):
    """The traced numbers of one SAE: changing them does not recompile."""

    architecture: dict[str, Float[Array, ""]]
    schedule: optimizer.Schedule
    activation_scale: Float[Array, ""]
    dead_after_tokens: Int[Array, ""]


def init_state(architecture: Architecture, config: ArchitectureConfig, d_in: int, key: Array) -> TrainState:
    """The state before the first step."""
    parameters = architecture.init(config, d_in, key)
    context = LossContext(jnp.ones(()), jnp.zeros(config.d_sae, bool), jnp.zeros(()))
    terms = jax.eval_shape(lambda x: architecture.loss(config, parameters, x, context)[0].terms, jnp.zeros((1, d_in)))
    return TrainState(
        parameters=parameters,
        optimizer=optimizer.init(parameters),
        tokens_since_fired=jnp.zeros(config.d_sae, jnp.int32),
        n_steps=jnp.zeros((), jnp.int32),
        window=metrics.empty(tuple(terms), d_in),
    )


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2,))
def train_step(
    architecture: Architecture,
    structure: ArchitectureConfig,
    state: TrainState,
    numbers: Numbers,
    rows: Float[Array, "batch d_in"],
) -> TrainState:
    """The state after one step on raw `rows`. `state` is consumed.

    Args:
        structure: the config with its numbers taken out (`ArchitectureConfig.structure`).
    """
    x = rows.astype(jnp.float32) * numbers.activation_scale
    config = structure.with_numbers(numbers.architecture)
    context = LossContext(
        sparsity_scale=optimizer.sparsity_scale(numbers.schedule, state.n_steps),
        is_dead=state.tokens_since_fired > numbers.dead_after_tokens,
        progress=state.n_steps / numbers.schedule.n_steps,
    )

    def loss(parameters: Any) -> tuple[Array, tuple[Any, Any]]:
        output, moved = architecture.loss(config, parameters, x, context)
        return output.total, (output, moved)

    gradients, (output, moved) = jax.grad(loss, has_aux=True)(state.parameters)
    gradients = architecture.constrain_gradients(state.parameters, gradients)
    change, optimizer_state, norm = optimizer.update(numbers.schedule, gradients, state.optimizer, state.n_steps)
    fired = jnp.any(output.acts > 0, axis=0)
    return TrainState(
        parameters=architecture.constrain(optax.apply_updates(moved, change)),
        optimizer=optimizer_state,
        tokens_since_fired=jnp.where(fired, 0, jnp.minimum(state.tokens_since_fired + len(x), COUNT_LIMIT)),
        n_steps=state.n_steps + 1,
        window=metrics.add(state.window, x, output, norm),
    )


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2,))
def resample_step(
    architecture: Architecture,
    structure: ArchitectureConfig,
    state: TrainState,
    numbers: Numbers,
    rows: Float[Array, "batch d_in"],
    key: Array,
) -> TrainState:
    """The state with its dead latents started anew, and without their optimiser's memory. `state` is consumed.

    Each takes a row's direction: where more are dead than there are rows, the others stay dead.
    """
    assert architecture.resample is not None
    x = rows.astype(jnp.float32) * numbers.activation_scale
    is_dead = state.tokens_since_fired > numbers.dead_after_tokens
    is_dead = is_dead & (jnp.cumsum(is_dead) <= len(rows))
    context = LossContext(jnp.ones(()), is_dead, state.n_steps / numbers.schedule.n_steps)
    output, _ = architecture.loss(structure.with_numbers(numbers.architecture), state.parameters, x, context)
    parameters, touched = architecture.resample(state.parameters, x, output.x_hat, is_dead, key)

    def forget(moments: Any) -> Any:
        return jax.tree.map(lambda moment, mask: jnp.where(mask, 0, moment), moments, touched)

    adam: Any = state.optimizer
    return state.replace(
        parameters=parameters,
        optimizer=adam._replace(mu=forget(adam.mu), nu=forget(adam.nu)),
        tokens_since_fired=jnp.where(is_dead, 0, state.tokens_since_fired),
    )
