"""Which values are the largest, of a row, of a batch, or of more than fits in memory. k may be traced."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt

DIGIT_BITS = 16
N_DIGITS = 1 << DIGIT_BITS
WORD_BITS = 32
CACHED_ROWS = 8

Number = Array | float | int


def kth_largest(values: Float[Array, "*rows n"], k: Number) -> Float[Array, "*rows"]:
    """The k-th largest of each row of values >= 0; `k` may be traced, so other k need no other compiled step.

    On a CPU rows are looked at a few at a time, which then stay in the processor's cache.
    """
    if values.ndim != 2 or len(values) % CACHED_ROWS or jax.default_backend() != "cpu":
        return kth_largest_at_once(values, k)
    blocks = values.reshape(-1, CACHED_ROWS, values.shape[1])
    return jax.lax.map(lambda block: kth_largest_at_once(block, k), blocks).reshape(len(values))


def kth_largest_at_once(values: Float[Array, "*rows n"], k: Number, over_batch: bool = False) -> Float[Array, "..."]:
    """The k-th largest of each row of values >= 0, or of all of them, with all rows looked at together.

    The bits of floats >= 0, read as integers, are in the same order: the answer is found bit by bit. For each bit values are
    only counted, so where they lie on several devices, these add their counts up.
    """
    is_double = values.dtype == jnp.float64
    real, whole, n_bits = (jnp.float64, jnp.int64, 63) if is_double else (jnp.float32, jnp.int32, 31)
    bits = jax.lax.bitcast_convert_type(values.astype(real), whole)

    def try_bit(index: Array, found: Array) -> Array:
        candidate = found | jnp.left_shift(jnp.ones((), whole), (n_bits - 1 - index).astype(whole))
        counts = jnp.sum(bits >= candidate[..., None], axis=-1)
        # Those of a batch may be more than an integer holds; k is far below what a float32 counts exactly.
        enough = (jnp.sum(counts.astype(jnp.float32)) if over_batch else counts) >= k
        return jnp.where(enough, candidate, found)

    found = jax.lax.fori_loop(0, n_bits, try_bit, jnp.zeros(() if over_batch else values.shape[:-1], whole))
    return jax.lax.bitcast_convert_type(found, real)


def keep_largest(acts: Float[Array, "*rows n"], k: Number) -> Float[Array, "*rows n"]:
    """`acts` (>= 0) with all but the k largest of each row set to 0; equal ones at the border are all kept."""
    return jnp.where(acts >= jax.lax.stop_gradient(kth_largest(acts, k))[..., None], acts, 0)


def keep_largest_of_batch(acts: Float[Array, "batch n"], k: Number) -> tuple[Float[Array, "batch n"], Float[Array, ""]]:
    """`acts` (>= 0) with all but the k largest per row *on average* set to 0, and the smallest positive one kept.

    The smallest is 0 if nothing is positive.
    """
    smallest = kth_largest_at_once(jax.lax.stop_gradient(acts), n_of_batch(acts, k), over_batch=True)
    kept = jnp.where(acts >= smallest, acts, 0)
    return kept, smallest_of(kept)


def n_of_batch(acts: Float[Array, "batch n"], k: Number) -> Float[Array, ""]:
    """How many latents a batch keeps at k a row."""
    return jnp.round(jnp.asarray(k, acts.dtype) * len(acts))


def smallest_of(acts: Float[Array, "..."]) -> Float[Array, ""]:
    """The smallest that is positive, 0 if none is."""
    smallest = jnp.min(jnp.where(acts > 0, acts, jnp.inf))
    return jnp.where(jnp.isfinite(smallest), smallest, 0)


def least_of_largest(values: Float[Array, "batch n"], n: Number, at_least: int, over_batch: bool = False) -> Array:
    """A value that the `n` largest of each row, or of the batch, do not fall below, and few others reach.

    It is the n-th largest of the maxima of groups, which takes a fraction of the time that the n-th largest itself does.

    Args:
        at_least: how many groups there are to be in a row, if it has as many values: the more, the fewer others.
    """
    width = values.shape[1]
    size = next(size for size in (32, 16, 8, 4, 2, 1) if size == 1 or width // size >= at_least)
    columns = -(-width // size)
    padded = jnp.pad(values, ((0, 0), (0, columns * size - width)))
    maxima = jnp.max(padded.reshape(len(values), size, columns), axis=1)
    return kth_largest(maxima.ravel(), n) if over_batch else kth_largest(maxima, n)[:, None]


def indices_of(mask: Bool[Array, "batch n"], n_slots: int) -> tuple[Int[Array, "batch slots"], Int[Array, " batch"]]:
    """Where a row of the mask is true, in slots in no special order, and how many these are, which may exceed the slots.

    The bits of a row are packed into words; a slot looks for the word with its bit, and then for the bit. Slots that are
    not taken hold 0.
    """
    words = _packed(mask)
    in_word = jax.lax.population_count(words).astype(jnp.int32)
    ends = jnp.cumsum(in_word, axis=1)
    counts, slots = ends[:, -1], jnp.arange(n_slots)

    def word_of(slot: Array, found: Array) -> Array:
        return found.at[slot].set(jnp.sum(ends <= slot, axis=1, dtype=jnp.int32))

    n_taken = jnp.minimum(jnp.max(counts), n_slots)
    where = jax.lax.fori_loop(0, n_taken, word_of, jnp.zeros((n_slots, len(mask)), jnp.int32)).T
    where = jnp.minimum(where, words.shape[1] - 1)
    word, before = (jnp.take_along_axis(found, where, axis=1) for found in (words, ends - in_word))

    def without_lowest(n_dropped: Array, word: Array) -> Array:
        return jnp.where(n_dropped < slots - before, word & (word - 1), word)

    word = jax.lax.fori_loop(0, jnp.max(in_word), without_lowest, word)
    bit = jax.lax.population_count((word & (~word + 1)) - 1).astype(jnp.int32)
    return jnp.where(slots < counts[:, None], bit * words.shape[1] + where, 0), counts


def _packed(mask: Bool[Array, "batch n"]) -> UInt[Array, "batch words"]:
    """The mask as words of 32 bits, of which the lowest bits are the first columns, so that neighbours are in other words."""
    n_words = -(-mask.shape[1] // WORD_BITS)
    padded = jnp.pad(mask, ((0, 0), (0, n_words * WORD_BITS - mask.shape[1])))
    bits = padded.reshape(len(mask), WORD_BITS, n_words).astype(jnp.uint32)
    return jnp.sum(bits << jnp.arange(WORD_BITS, dtype=jnp.uint32)[:, None], axis=1, dtype=jnp.uint32)


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
    return jnp.zeros(N_DIGITS, jnp.int32).at[digits].add(1, mode="drop")


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
