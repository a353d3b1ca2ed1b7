"""The jump at a threshold, whose derivative by the threshold is that of the expected loss, by a kernel of some width."""

import jax
import jax.numpy as jnp
from jaxtyping import Array


def _window(z: Array, threshold: Array, bandwidth: Array) -> Array:
    """1 / bandwidth inside the window around the threshold, else 0."""
    return jnp.where(jnp.abs(z - threshold) < bandwidth / 2, 1 / bandwidth, 0)


def _by(threshold: Array, gradient: Array) -> Array:
    """The gradient for each threshold, of those that stand beside z or serve all rows."""
    return gradient if threshold.ndim == gradient.ndim else jnp.sum(gradient, axis=0)


@jax.custom_vjp
def jumprelu(z: Array, threshold: Array, bandwidth: Array) -> Array:
    """z where z > threshold, else 0. Its derivative by the threshold is that of the expected loss, by a kernel."""
    return jnp.where(z > threshold, z, 0)


def _jumprelu_forward(z: Array, threshold: Array, bandwidth: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return jumprelu(z, threshold, bandwidth), (z, threshold, bandwidth)


def _jumprelu_backward(saved: tuple[Array, Array, Array], upstream: Array) -> tuple[Array, Array, Array]:
    z, threshold, bandwidth = saved
    by_threshold = _by(threshold, -threshold * _window(z, threshold, bandwidth) * upstream)
    return jnp.where(z > threshold, upstream, 0), by_threshold, jnp.zeros_like(bandwidth)


jumprelu.defvjp(_jumprelu_forward, _jumprelu_backward)


@jax.custom_vjp
def active(z: Array, threshold: Array, bandwidth: Array) -> Array:
    """1 where z > threshold, else 0, with a kernel for the derivative by the threshold and none by z."""
    return (z > threshold).astype(z.dtype)


def _active_forward(z: Array, threshold: Array, bandwidth: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return active(z, threshold, bandwidth), (z, threshold, bandwidth)


def _active_backward(saved: tuple[Array, Array, Array], upstream: Array) -> tuple[Array, Array, Array]:
    z, threshold, bandwidth = saved
    by_threshold = _by(threshold, -_window(z, threshold, bandwidth) * upstream)
    return jnp.zeros_like(z), by_threshold, jnp.zeros_like(bandwidth)


active.defvjp(_active_forward, _active_backward)
