"""What Adam remembers of each weight, in less memory than two float32: opened for a step, and closed after it.

The step itself is Adam's in float32, its own gradient counted in full; only what is carried to the next step is rounded.
Matrices alone are: vectors are small. How a moment is kept shows in its form, so nothing else has to say it.

factored: the second moment is the product of its means over rows and over columns.
    Source: Shazeer and Stern 2018, "Adafactor", arXiv:1804.04235, section 3.
int8: whole numbers on a logarithmic scale below the largest of each block, which has a scale of its own.
    Source (8 bits and a scale for each block): Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization",
    arXiv:2110.02861. Theirs rounds to the nearest number. A second moment falls by a thousandth in a step, far less than
    the distance of two numbers, and would never fall; so a number is rounded up in as many steps as its fraction says.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt

from sae_service.pytree import PyTree
from sae_service.schema import Moments

BLOCK = 256
LARGEST = 255
PER_OCTAVE = 8
"""Numbers for a factor of 2: the smallest of a block is 2^-32 of the largest."""
GOLDEN = 0x9E3779B1
"""2^32 over the golden ratio: its multiples, modulo 2^32, are spread evenly, however many of them there are."""


class Factored(PyTree):
    """The means of a matrix over its columns and over its rows, whose own means are the same."""

    of_rows: Float[Array, " rows"]
    of_columns: Float[Array, " columns"]


class Quantised(PyTree):
    """A matrix that is nowhere negative, in blocks of BLOCK columns. 0 stands for 0."""

    codes: UInt[Array, "rows columns"]
    largest: Float[Array, "rows blocks"]


def begun(parameters: Any, kept: Moments) -> tuple[Any, Any]:
    """The first and the second moments of an optimiser that has seen nothing."""

    def second(leaf: Array) -> Any:
        if leaf.ndim != 2 or kept.second_moment == "float32":
            return jnp.zeros_like(leaf)
        rows, columns = leaf.shape
        if kept.second_moment == "factored":
            return Factored(jnp.zeros(rows), jnp.zeros(columns))
        return Quantised(jnp.zeros(leaf.shape, jnp.uint8), jnp.zeros((rows, -(-columns // BLOCK))))

    def first(leaf: Array) -> Array:
        return jnp.zeros_like(leaf, leaf.dtype if leaf.ndim != 2 else kept.first_moment)

    return jax.tree.map(first, parameters), jax.tree.map(second, parameters)


def opened(moments: Any) -> Any:
    """The moments as arrays of float32, each of its parameter's shape."""
    return jax.tree.map(_opened, moments, is_leaf=_is_kept)


def closed(moments: Any, like: Any, step: Int[Array, ""]) -> Any:
    """The moments in the form of `like`.

    Args:
        step: how many steps there were.
    """
    return jax.tree.map(lambda kept, full: _closed(full, kept, step), like, moments, is_leaf=_is_kept)


def forgotten(moments: Any, touched: Any) -> Any:
    """The moments with 0 where the arrays of `touched`, which broadcast to the parameters' shapes, are true."""
    return jax.tree.map(_forgotten, moments, touched, is_leaf=_is_kept)


def _is_kept(node: Any) -> bool:
    return isinstance(node, Factored | Quantised)


def _opened(kept: Any) -> Array:
    match kept:
        case Factored():
            mean = jnp.mean(kept.of_rows)
            return kept.of_rows[:, None] * (kept.of_columns / jnp.where(mean > 0, mean, 1))
        case Quantised():
            below = (kept.codes.astype(jnp.float32) - LARGEST) / PER_OCTAVE
            return jnp.where(kept.codes > 0, jnp.exp2(below) * _by_column(kept.largest, kept.codes.shape[1]), 0)
        case _:
            return kept.astype(jnp.float32) if kept.dtype == jnp.bfloat16 else kept


def _closed(full: Array, kept: Any, step: Array) -> Any:
    match kept:
        case Factored():
            return Factored(jnp.mean(full, axis=1), jnp.mean(full, axis=0))
        case Quantised():
            return _quantised(full, step)
        case _:
            return full.astype(kept.dtype)


def _quantised(full: Float[Array, "rows columns"], step: Int[Array, ""]) -> Quantised:
    rows, columns = full.shape
    padded = jnp.pad(full, ((0, 0), (0, -columns % BLOCK)))
    largest = jnp.max(padded.reshape(rows, -1, BLOCK), axis=2)
    scale = _by_column(largest, columns)
    exact = LARGEST + PER_OCTAVE * jnp.log2(jnp.where(full > 0, full, 1) / jnp.where(full > 0, scale, 1))
    codes = jnp.clip(jnp.floor(exact + _fractions(full.shape, step)), 1, LARGEST)
    return Quantised(jnp.where(full > 0, codes, 0).astype(jnp.uint8), largest)


def _fractions(shape: tuple[int, ...], step: Int[Array, ""]) -> Float[Array, "rows columns"]:
    """A number in [0, 1) for each place, evenly spread over any steps that follow one another."""
    place = jnp.arange(shape[0], dtype=jnp.uint32)[:, None] * jnp.uint32(0x85EBCA6B) + jnp.arange(shape[1], dtype=jnp.uint32)
    mixed = place * jnp.uint32(0xC2B2AE35) + step.astype(jnp.uint32) * jnp.uint32(GOLDEN)
    return (mixed >> 8).astype(jnp.float32) / (1 << 24)


def _by_column(by_block: Float[Array, "rows blocks"], columns: int) -> Float[Array, "rows columns"]:
    return jnp.repeat(by_block, BLOCK, axis=1)[:, :columns]


def _forgotten(kept: Any, mask: Array) -> Any:
    match kept:
        case Factored():
            return _factors_without(kept, mask)
        case Quantised():
            return kept.replace(codes=jnp.where(mask, 0, kept.codes))
        case _:
            return jnp.where(mask, 0, kept)


def _factors_without(kept: Factored, mask: Array) -> Factored:
    """Without the rows and columns that are touched as a whole; what is left of the product stays as it is."""
    whole = jnp.broadcast_to(mask, (len(kept.of_rows), len(kept.of_columns)))
    of_rows = jnp.where(jnp.all(whole, axis=1), 0, kept.of_rows)
    of_columns = jnp.where(jnp.all(whole, axis=0), 0, kept.of_columns)
    mean, left_of_rows, left_of_columns = (jnp.mean(part) for part in (kept.of_rows, of_rows, of_columns))
    scale = jnp.where(mean > 0, mean, 1)
    return Factored(of_rows * (left_of_columns / scale), of_columns * (left_of_rows / scale))
