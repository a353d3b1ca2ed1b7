"""The dense reference of each operation on latents: every latent of every row is computed and kept."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sae_service.kernels.selection import keep_largest, keep_largest_of_batch
from sae_service.pytree import PyTree

Number = Array | float | int


class Latents(PyTree):
    """Pre-activations z, and activations, which are 0 where a latent is not active."""

    z: Float[Array, "batch d_sae"]
    acts: Float[Array, "batch d_sae"]

    def fired(self) -> Bool[Array, " d_sae"]:
        """Whether each latent is active in any row."""
        return jnp.any(self.acts > 0, axis=0)

    def n_active(self) -> Int[Array, ""]:
        """Count of active latents, summed over the rows."""
        return jnp.sum(self.acts > 0)


@dataclass(frozen=True)
class Ops:
    """The operations on latents that a loss may use; implementations are equal in value and gradient.

    Attributes:
        encode: (x, W_enc, b_enc) -> Latents: those above 0.
        encode_topk: (x, W_enc, b_enc, k) -> Latents: the k largest of each row, if positive.
        encode_topk_of_batch: (x, W_enc, b_enc, k) -> (Latents, smallest): the k largest a row on average over the batch,
            and the smallest of them, 0 if none is positive.
        encode_above: (x, W_enc, b_enc, threshold, bandwidth) -> Latents: those above their thresholds.
        decode: (latents, W_dec) -> what they write.
    """

    encode: Callable[[Array, Array, Array], Latents]
    encode_topk: Callable[[Array, Array, Array, Number], Latents]
    encode_topk_of_batch: Callable[[Array, Array, Array, Number], tuple[Latents, Array]]
    encode_above: Callable[[Array, Array, Array, Array, Array], Latents]
    decode: Callable[[Latents, Array], Array]


def encode(
    x: Float[Array, "batch d_read"], W_enc: Float[Array, "d_read d_sae"], b_enc: Float[Array, " d_sae"]
) -> Latents:
    """Every latent that is above 0."""
    z = x @ W_enc + b_enc
    return Latents(z, jax.nn.relu(z))


def encode_topk(
    x: Float[Array, "batch d_read"], W_enc: Float[Array, "d_read d_sae"], b_enc: Float[Array, " d_sae"], k: Number
) -> Latents:
    """The k largest latents of each row."""
    z = x @ W_enc + b_enc
    return Latents(z, keep_largest(jax.nn.relu(z), k))


def encode_topk_of_batch(
    x: Float[Array, "batch d_read"], W_enc: Float[Array, "d_read d_sae"], b_enc: Float[Array, " d_sae"], k: Number
) -> tuple[Latents, Float[Array, ""]]:
    """The k largest latents a row on average, and the smallest of them."""
    z = x @ W_enc + b_enc
    acts, smallest = keep_largest_of_batch(jax.nn.relu(z), k)
    return Latents(z, acts), smallest


def encode_above(
    x: Float[Array, "batch d_read"],
    W_enc: Float[Array, "d_read d_sae"],
    b_enc: Float[Array, " d_sae"],
    threshold: Float[Array, " d_sae"],
    bandwidth: Float[Array, ""],
) -> Latents:
    """The latents above their thresholds."""
    z = x @ W_enc + b_enc
    return Latents(z, jumprelu(z, threshold, bandwidth))


def decode(latents: Latents, W_dec: Float[Array, "d_sae d_write"]) -> Float[Array, "batch d_write"]:
    """What the latents write."""
    return latents.acts @ W_dec


DENSE = Ops(encode, encode_topk, encode_topk_of_batch, encode_above, decode)


def _window(z: Array, threshold: Array, bandwidth: Array) -> Array:
    """1 / bandwidth inside the window around the threshold, else 0."""
    return jnp.where(jnp.abs(z - threshold) < bandwidth / 2, 1 / bandwidth, 0)


@jax.custom_vjp
def jumprelu(z: Array, threshold: Array, bandwidth: Array) -> Array:
    """z where z > threshold, else 0. Its derivative by the threshold is that of the expected loss, by a kernel."""
    return jnp.where(z > threshold, z, 0)


def _jumprelu_forward(z: Array, threshold: Array, bandwidth: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return jumprelu(z, threshold, bandwidth), (z, threshold, bandwidth)


def _jumprelu_backward(saved: tuple[Array, Array, Array], upstream: Array) -> tuple[Array, Array, Array]:
    z, threshold, bandwidth = saved
    by_threshold = jnp.sum(-threshold * _window(z, threshold, bandwidth) * upstream, axis=0)
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
    by_threshold = jnp.sum(-_window(z, threshold, bandwidth) * upstream, axis=0)
    return jnp.zeros_like(z), by_threshold, jnp.zeros_like(bandwidth)


active.defvjp(_active_forward, _active_backward)
