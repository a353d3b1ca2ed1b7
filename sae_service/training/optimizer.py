"""Adam with schedules whose every number is traced, so that SAEs that differ in numbers share one compiled step."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from sae_service.pytree import PyTree
from sae_service.schema import Duration, Moments, OptimizerConfig
from sae_service.training import moments

FULL = Moments()


class Schedule(PyTree):
    """The optimiser's numbers for one job, durations resolved to steps.

    The learning rate warms up from the last of the steps `lr_warm_up_from` that is over.
    """

    lr: Float[Array, ""]
    beta1: Float[Array, ""]
    beta2: Float[Array, ""]
    eps: Float[Array, ""]
    clip_norm: Float[Array, ""]
    lr_warm_up_steps: Float[Array, ""]
    lr_warm_up_start: Float[Array, ""]
    lr_warm_up_is_cosine: Float[Array, ""]
    lr_decay_steps: Float[Array, ""]
    sparsity_warm_up_steps: Float[Array, ""]
    n_steps: Float[Array, ""]
    lr_warm_up_from: Float[Array, " times"]


def steps_of(duration: Duration, n_steps: int) -> int:
    """A duration in steps, for a job of `n_steps`."""
    return duration if isinstance(duration, int) else round(duration * n_steps)


def schedule(config: OptimizerConfig, n_steps: int, warm_up_again: tuple[int, ...] = ()) -> Schedule:
    """The traced numbers of `config` for a job of `n_steps`; no clipping is clipping at infinity.

    Args:
        warm_up_again: the steps after which the learning rate warms up again.
    """
    is_cosine = config.lr_warm_up_shape == "cosine"
    numbers = {
        "lr": config.lr, "beta1": config.beta1, "beta2": config.beta2, "eps": config.eps,
        "clip_norm": np.inf if config.clip_norm is None else config.clip_norm,
        "lr_warm_up_steps": steps_of(config.lr_warm_up, n_steps),
        "lr_warm_up_start": 0.1 if is_cosine else 0.0,
        "lr_warm_up_is_cosine": float(is_cosine),
        "lr_decay_steps": steps_of(config.lr_decay, n_steps),
        "sparsity_warm_up_steps": steps_of(config.sparsity_warm_up, n_steps),
        "n_steps": n_steps,
        "lr_warm_up_from": (0, *warm_up_again),
    }  # fmt: skip
    on_host: dict[str, Any] = {name: np.asarray(value, np.float32) for name, value in numbers.items()}
    return Schedule(**on_host)


def warm_up_warnings(config: OptimizerConfig, n_steps: int) -> list[str]:
    """What a user should know of a job that spends most of itself on warming up."""
    return [
        f"optimizer.{name} takes {steps} of the job's {n_steps} steps; give a share below 1 for a short job"
        for name in ("lr_warm_up", "sparsity_warm_up")
        if (steps := steps_of(getattr(config, name), n_steps)) > n_steps // 2
    ]


def learning_rate(numbers: Schedule, step: Int[Array, ""]) -> Float[Array, ""]:
    """The learning rate of the step after `step` finished ones: warm-up, constant, linear decay to 0.

    Source (cosine): Lieberum et al. 2024, "Gemma Scope", arXiv:2408.05147: 0.1 + 0.9 (1 - cos(pi t / steps)) / 2.
    """
    t = step.astype(jnp.float32)
    begun = jnp.max(jnp.where(numbers.lr_warm_up_from <= t, numbers.lr_warm_up_from, 0))
    progress = jnp.minimum((t + 1 - begun) / jnp.maximum(numbers.lr_warm_up_steps, 1), 1)
    curve = jnp.where(numbers.lr_warm_up_is_cosine > 0, (1 - jnp.cos(jnp.pi * progress)) / 2, progress)
    rise = numbers.lr_warm_up_start + (1 - numbers.lr_warm_up_start) * curve
    fall = jnp.minimum((numbers.n_steps - t) / jnp.maximum(numbers.lr_decay_steps, 1), 1)
    return numbers.lr * rise * fall


def sparsity_scale(numbers: Schedule, step: Int[Array, ""]) -> Float[Array, ""]:
    """The factor on the sparsity coefficient: linear from 0 to 1 over its warm-up."""
    return jnp.minimum((step.astype(jnp.float32) + 1) / jnp.maximum(numbers.sparsity_warm_up_steps, 1), 1)


def init(parameters: Any, kept: Moments = FULL) -> optax.ScaleByAdamState:
    """The state of an optimiser that has seen nothing, its moments kept as they are to be."""
    mu, nu = moments.begun(parameters, kept)
    return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), mu, nu)


def update(
    numbers: Schedule, gradients: Any, state: optax.ScaleByAdamState, step: Int[Array, ""]
) -> tuple[Any, optax.ScaleByAdamState, Float[Array, ""]]:
    """The change to add to the parameters, the next state, and the gradient's norm before clipping."""
    norm = optax.tree.norm(gradients)
    factor = jnp.minimum(1, numbers.clip_norm / jnp.maximum(norm, 1e-12))
    clipped = optax.tree.scale(factor, gradients)
    adam = optax.scale_by_adam(b1=numbers.beta1, b2=numbers.beta2, eps=numbers.eps)  # pyright: ignore[reportArgumentType]
    full: Any = state._replace(mu=moments.opened(state.mu), nu=moments.opened(state.nu))
    direction, full = adam.update(clipped, full)
    mu, nu = (moments.closed(found, kept, full.count) for found, kept in ((full.mu, state.mu), (full.nu, state.nu)))
    return optax.tree.scale(-learning_rate(numbers, step), direction), full._replace(mu=mu, nu=nu), norm


def forgotten(state: optax.ScaleByAdamState, touched: Any) -> optax.ScaleByAdamState:
    """The state without memory of what `touched`, arrays that broadcast to the parameters' shapes, says."""
    return state._replace(mu=moments.forgotten(state.mu, touched), nu=moments.forgotten(state.nu, touched))
