"""One training step as a pure function: loss, gradient, update, constraint, counts and sums."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from sae_service.kernels.dense import DENSE
from sae_service.kernels.ops import Ops
from sae_service.kernels.sparse import sparse
from sae_service.pytree import PyTree
from sae_service.sae.architecture import Architecture, LossContext, LossOutput, Rows
from sae_service.sae.sites import Sites
from sae_service.schema import ArchitectureConfig, Moments
from sae_service.training import metrics, optimizer

COUNT_LIMIT = 1 << 30


class TrainState(PyTree):
    """All that changes during training, as one pytree. `n_steps` counts finished steps.

    Attributes:
        most: how many latents a row depended on in the last step, in the row that had the most (`LossOutput.most`).
    """

    parameters: Any
    optimizer: optax.ScaleByAdamState
    tokens_since_fired: Int[Array, " d_sae"]
    n_steps: Int[Array, ""]
    most: Int[Array, ""]
    window: metrics.Window


class Numbers(PyTree):
    """The traced numbers of one SAE: changing them does not recompile. The scales have one value for each column."""

    architecture: dict[str, Float[Array, ""]]
    schedule: optimizer.Schedule
    read_scale: Float[Array, " d_read"]
    write_scale: Float[Array, " d_write"]
    dead_after_tokens: Int[Array, ""]


class Served(PyTree):
    """A batch as the stream serves it, for one SAE: the raw rows of each hook point that is read, and of each that is
    written; None for an autoencoder, which writes what it reads.
    """

    read: tuple[Float[Array, "batch d"], ...]
    write: tuple[Float[Array, "batch d"], ...] | None = None


def scaled(served: Served, numbers: Numbers) -> Rows:
    """The rows side by side, in float32, times their scales."""
    x = _beside(served.read) * numbers.read_scale
    return Rows(x, x if served.write is None else _beside(served.write) * numbers.write_scale)


def _beside(rows: tuple[Array, ...]) -> Array:
    columns = [part.astype(jnp.float32) for part in rows]
    return columns[0] if len(columns) == 1 else jnp.concatenate(columns, axis=1)


def begun(
    architecture: Architecture, config: ArchitectureConfig, sites: Sites, parameters: Any, kept: Moments = optimizer.FULL
) -> TrainState:
    """The state of parameters before the first step, with the optimiser's moments kept as they are to be."""
    context = LossContext(jnp.ones(()), jnp.zeros(config.d_sae, bool), jnp.zeros(()))
    rows = Rows(jnp.zeros((1, sites.d_read)), jnp.zeros((1, sites.d_write)))
    terms = jax.eval_shape(lambda: architecture.loss(config, parameters, rows, context, DENSE)[0].terms)
    return TrainState(
        parameters=parameters,
        optimizer=optimizer.init(parameters, kept),
        tokens_since_fired=jnp.zeros(config.d_sae, jnp.int32),
        n_steps=jnp.zeros((), jnp.int32),
        most=jnp.zeros((), jnp.int32),
        window=metrics.empty(tuple(terms), sites.d_write),
    )


class Measured(PyTree):
    """What a step goes by: the gradients, the loss's output, and the parameters with what moves without a gradient."""

    gradients: Any
    output: LossOutput
    moved: Any


def step(
    architecture: Architecture, structure: ArchitectureConfig, n_slots: int | None, state: TrainState, numbers: Numbers,
    served: Served, dense: Ops = DENSE,
) -> TrainState:  # fmt: skip
    """The state after one step on raw rows.

    Args:
        structure: the config with its numbers taken out (`ArchitectureConfig.structure`).
        n_slots: of a row's latents in the sparse operations; None for the dense ones.
        dense: what carries these out.
    """
    rows = scaled(served, numbers)
    config = structure.with_numbers(numbers.architecture)
    context = LossContext(
        sparsity_scale=optimizer.sparsity_scale(numbers.schedule, state.n_steps),
        is_dead=state.tokens_since_fired > numbers.dead_after_tokens,
        progress=state.n_steps / numbers.schedule.n_steps,
    )

    def measured(ops: Ops) -> Measured:
        def loss(parameters: Any) -> tuple[Array, tuple[Any, Any]]:
            output, moved = architecture.loss(config, parameters, rows, context, ops)
            return output.total, (output, moved)

        gradients, (output, moved) = jax.grad(loss, has_aux=True)(state.parameters)
        return Measured(gradients, output, moved)

    found = measured(dense) if n_slots is None else _measured_sparsely(measured, n_slots, state)
    output = found.output
    gradients = architecture.constrain_gradients(state.parameters, found.gradients)
    change, optimizer_state, norm = optimizer.update(numbers.schedule, gradients, state.optimizer, state.n_steps)
    unseen = jnp.minimum(state.tokens_since_fired + len(rows.x), COUNT_LIMIT)
    return TrainState(
        parameters=architecture.constrain(optax.apply_updates(found.moved, change)),
        optimizer=optimizer_state,
        tokens_since_fired=jnp.where(output.fired, 0, unseen),
        n_steps=state.n_steps + 1,
        most=output.most,
        window=metrics.add(state.window, rows.y, output, norm),
    )


def _measured_sparsely(measured: Callable[[Ops], Measured], n_slots: int, state: TrainState) -> Measured:
    """By the sparse operations, or by the dense ones where a row depends on more latents than there are slots.

    A step after one with too many begins with the dense operations, so that it does not take the time of both.
    """
    sparsely = partial(measured, sparse(n_slots))

    def untried() -> Measured:
        nothing: Measured = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(sparsely))
        return nothing.replace(output=nothing.output.replace(most=jnp.int32(n_slots + 1)), moved=state.parameters)

    def densely() -> Measured:
        found = measured(DENSE)
        most = jnp.where(state.most > n_slots, found.output.most, tried.output.most)
        return found.replace(output=found.output.replace(most=most))

    tried = jax.lax.cond(state.most > n_slots, untried, sparsely)
    return jax.lax.cond(tried.output.most > n_slots, densely, lambda: tried)


def resample(
    architecture: Architecture, structure: ArchitectureConfig, state: TrainState, numbers: Numbers, served: Served, key: Array
) -> TrainState:
    """The state with its dead latents started anew, and without their optimiser's memory.

    Each takes a row's direction: where more are dead than there are rows, the others stay dead.
    """
    assert architecture.resample is not None
    rows = scaled(served, numbers)
    is_dead = state.tokens_since_fired > numbers.dead_after_tokens
    is_dead = is_dead & (jnp.cumsum(is_dead) <= len(rows.x))
    sae = architecture.export(structure.with_numbers(numbers.architecture), state.parameters)
    y_hat = sae.decode(sae.encode(rows.x), rows.x)
    parameters, touched = architecture.resample(state.parameters, rows, y_hat, is_dead, key)

    return state.replace(
        parameters=parameters,
        optimizer=optimizer.forgotten(state.optimizer, touched),
        tokens_since_fired=jnp.where(is_dead, 0, state.tokens_since_fired),
    )
