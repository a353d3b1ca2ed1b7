"""The k largest of each row, or of a whole batch, with a k that may be traced."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def kth_largest(values: Float[Array, "*rows n"], k: Float[Array, ""] | float | int) -> Float[Array, "*rows"]:
    """The k-th largest of each row of values >= 0; `k` may be traced, so other k need no other compiled step.

    The bits of floats >= 0, read as integers, are in the same order: the answer is found bit by bit.
    """
    is_double = values.dtype == jnp.float64
    real, whole, n_bits = (jnp.float64, jnp.int64, 63) if is_double else (jnp.float32, jnp.int32, 31)
    bits = jax.lax.bitcast_convert_type(values.astype(real), whole)

    def try_bit(index: Array, found: Array) -> Array:
        candidate = found | jnp.left_shift(jnp.ones((), whole), (n_bits - 1 - index).astype(whole))
        enough = jnp.sum(bits >= candidate[..., None], axis=-1) >= k
        return jnp.where(enough, candidate, found)

    found = jax.lax.fori_loop(0, n_bits, try_bit, jnp.zeros(values.shape[:-1], whole))
    return jax.lax.bitcast_convert_type(found, real)


def keep_largest(acts: Float[Array, "*rows n"], k: Float[Array, ""] | float | int) -> Float[Array, "*rows n"]:
    """`acts` (>= 0) with all but the k largest of each row set to 0; equal ones at the border are all kept."""
    return jnp.where(acts >= jax.lax.stop_gradient(kth_largest(acts, k))[..., None], acts, 0)


def keep_largest_of_batch(
    acts: Float[Array, "batch d_sae"], k: Float[Array, ""] | float | int
) -> tuple[Float[Array, "batch d_sae"], Float[Array, ""]]:
    """`acts` (>= 0) with all but the k largest per row *on average* set to 0, and the smallest positive one kept.

    The smallest is 0 if nothing is positive.
    """
    flat = acts.ravel()
    kept = keep_largest(flat, jnp.round(jnp.asarray(k, acts.dtype) * acts.shape[0]))
    smallest = jnp.min(jnp.where(kept > 0, kept, jnp.inf))
    return kept.reshape(acts.shape), jnp.where(jnp.isfinite(smallest), smallest, 0)
