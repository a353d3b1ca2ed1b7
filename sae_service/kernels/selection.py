"""The k largest of each row, or of a whole batch, with a k that may be traced; and those of more than fits in memory."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt

DIGIT_BITS = 16
N_DIGITS = 1 << DIGIT_BITS


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


def digit_counts(
    values: Float[Array, "rows n"], shift: UInt[Array, ""] | int, prefix: UInt[Array, ""] | int
) -> Int[Array, " n_digits"]:
    """How many of the values above 0 have each digit, which is 16 of a float32's bits, where the bits before it are `prefix`.

    Args:
        shift: bits behind the digit: 16 for the first of the two digits, 0 for the second.
    """
    bits = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32) >> jnp.asarray(shift, jnp.uint32)
    counts = (values > 0) & (bits >> DIGIT_BITS == prefix)
    digits = jnp.where(counts, bits & (N_DIGITS - 1), N_DIGITS)
    return jnp.zeros(N_DIGITS, jnp.int32).at[digits.ravel()].add(1, mode="drop")


def nth_largest(count: Callable[[int, int], Int[np.ndarray, " n_digits"]], n: int) -> float:
    """The n-th largest of values above 0, exactly, in two passes over them; 0 if there are fewer.

    Args:
        count: (shift, prefix) -> the sum of `digit_counts` over all values.
    """
    prefix = 0
    for shift in (DIGIT_BITS, 0):
        counts = count(shift, prefix)
        from_above = np.cumsum(counts[::-1])
        if from_above[-1] < n:
            return 0.0
        index = int(np.searchsorted(from_above, n))
        n -= int(from_above[index] - counts[-1 - index])
        prefix = prefix << DIGIT_BITS | (N_DIGITS - 1 - index)
    return float(np.uint32(prefix).view(np.float32))
