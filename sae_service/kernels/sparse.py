"""The operations on latents where few of them matter: only the product that finds them is dense.

A row's latents stand in a fixed number of slots. Those that take none have no effect on the loss or on a gradient, unless
there are more than slots, which `Latents.most` tells; then nothing that comes of them may be used.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sae_service.kernels.gathered import chosen, written
from sae_service.kernels.jump import jumprelu
from sae_service.kernels.latents import Latents, SomeLatents
from sae_service.kernels.ops import Ops
from sae_service.kernels.precision import product
from sae_service.kernels.selection import Number, indices_of, kth_largest, least_of_largest, n_of_batch, smallest_of

ENCODED_ROWS = 256
"""Rows whose z are there at a time."""
SLOTS_PER_GROUP = 2
"""Of a row, for whose maxima there are groups: with more groups fewer slots are taken by what is not among the largest."""


def sparse(n_slots: int) -> Ops:
    """The operations for at most so many latents a row."""
    return Ops(
        partial(encode, n_slots),
        partial(encode_topk, n_slots),
        partial(encode_topk_of_batch, n_slots),
        partial(encode_above, n_slots),
        decode,
        decode_prefixes,
    )


def encode(
    n_slots: int, x: Float[Array, "batch d_read"], W_enc: Float[Array, "d_read d_sae"], b_enc: Float[Array, " d_sae"]
) -> SomeLatents:
    """The latents above 0."""
    return _latents((x, W_enc, b_enc), partial(_where, n_slots, lambda z: z > 0))


def encode_topk(
    n_slots: int, x: Float[Array, "batch d_read"], W_enc: Float[Array, "d_read d_sae"], b_enc: Float[Array, " d_sae"], k: Number
) -> SomeLatents:
    """The k largest latents of each row."""

    def largest(z: Array) -> Found:
        positive = jax.nn.relu(z)
        # With as many groups as slots, of which k are at most half, about 1.4 k latents reach this.
        least = least_of_largest(positive, k, n_slots)
        indices, counts = indices_of((z >= least) & (z > 0), n_slots)
        smallest = kth_largest(_values(positive, indices, counts), k)[:, None]
        return _narrowed(z, indices, counts, smallest)

    return _latents((x, W_enc, b_enc), largest)


def encode_topk_of_batch(
    n_slots: int, x: Float[Array, "batch d_read"], W_enc: Float[Array, "d_read d_sae"], b_enc: Float[Array, " d_sae"], k: Number
) -> tuple[SomeLatents, Float[Array, ""]]:
    """The k largest latents a row on average, and the smallest of them."""
    z = jax.lax.stop_gradient(product(x, W_enc) + b_enc)
    positive, n = jax.nn.relu(z), n_of_batch(z, k)
    least = least_of_largest(positive, n, n_slots // SLOTS_PER_GROUP, over_batch=True)
    indices, counts = indices_of((z >= least) & (z > 0), n_slots)
    smallest = kth_largest(_values(positive, indices, counts).ravel(), n)
    found = _of((x, W_enc, b_enc), _narrowed(z, indices, counts, smallest))
    return found, smallest_of(found.acts)


def encode_above(
    n_slots: int,
    x: Float[Array, "batch d_read"],
    W_enc: Float[Array, "d_read d_sae"],
    b_enc: Float[Array, " d_sae"],
    threshold: Float[Array, " d_sae"],
    bandwidth: Float[Array, ""],
) -> SomeLatents:
    """The latents above their thresholds, and those in the windows around them."""
    fixed = jax.lax.stop_gradient(threshold)
    found = _latents((x, W_enc, b_enc), partial(_where, n_slots, lambda z: z - fixed > -bandwidth / 2))
    return found.replace(acts=jumprelu(found.z, found.of(threshold), bandwidth))


def decode(latents: Latents, W_dec: Float[Array, "d_sae d_write"]) -> Float[Array, "batch d_write"]:
    """What the latents write."""
    return _written(1, latents, W_dec, None)[0]


def decode_prefixes(
    latents: Latents, W_dec: Float[Array, "d_sae d_write"], widths: tuple[int, ...]
) -> Float[Array, "prefixes batch d_write"]:
    """What the first latents of each width write."""
    assert isinstance(latents, SomeLatents)
    groups = jnp.searchsorted(jnp.asarray(widths), latents.indices, side="right").astype(jnp.int32)
    return jnp.cumsum(_written(len(widths), latents, W_dec, groups), axis=0)


def _written(n_groups: int, latents: Latents, W_dec: Array, groups: Array | None) -> Any:
    assert isinstance(latents, SomeLatents)
    return written(n_groups, latents.acts, W_dec, latents.indices, latents.counts, groups)


Encoder = tuple[Array, Array, Array]


class Found(NamedTuple):
    """The latents in the slots of each row: which they are, how many slots are taken, z, and how many were looked at."""

    indices: Int[Array, "batch slots"]
    counts: Int[Array, " batch"]
    z: Float[Array, "batch slots"]
    n_looked_at: Int[Array, " batch"]


def _latents(encoder: Encoder, find: Callable[[Array], Found]) -> SomeLatents:
    """What `find` makes of z, of some rows at a time: that of all rows would be the largest array of a step."""
    x, W_enc, b_enc = jax.lax.stop_gradient(encoder)

    def found(rows: Array) -> Found:
        return find(product(rows, W_enc) + b_enc)

    if len(x) % ENCODED_ROWS:
        return _of(encoder, found(x))
    parts = jax.lax.map(found, x.reshape(-1, ENCODED_ROWS, x.shape[1]))
    return _of(encoder, jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:]), parts))


def _of(encoder: Encoder, found: Found) -> SomeLatents:
    """The latents with their gradients."""
    z = chosen(*encoder, found.z, found.indices, found.counts)
    most = jnp.max(found.n_looked_at)
    return SomeLatents(z, jax.nn.relu(z), most, indices=found.indices, counts=found.counts, d_sae=encoder[1].shape[1])


def _where(n_slots: int, is_wanted: Callable[[Array], Array], z: Float[Array, "batch d_sae"]) -> Found:
    """The latents that are wanted."""
    indices, counts = indices_of(is_wanted(z), n_slots)
    return Found(indices, jnp.minimum(counts, n_slots), jnp.take_along_axis(z, indices, axis=1), counts)


def _values(z: Float[Array, "batch d_sae"], indices: Int[Array, "batch slots"], counts: Int[Array, " batch"]) -> Array:
    """What is in the slots, 0 in those that are not taken."""
    return jnp.where(jnp.arange(indices.shape[1]) < counts[:, None], jnp.take_along_axis(z, indices, axis=1), 0)


def _narrowed(z: Array, indices: Array, counts: Array, smallest: Array) -> Found:
    """The latents in the slots that reach the smallest, in slots of their own."""
    values = _values(z, indices, counts)
    slots, n_kept = indices_of((values >= smallest) & (values > 0), indices.shape[1])
    kept = jnp.take_along_axis(indices, slots, axis=1)
    return Found(kept, n_kept, jnp.take_along_axis(values, slots, axis=1), counts)
