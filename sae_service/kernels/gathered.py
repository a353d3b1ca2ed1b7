"""What the latents in the slots of each row read and write, and the gradients: loops over slots and rows.

On a CPU these take a tenth of the time of the dense products and less, where one latent in a hundred is in a slot.
`indices` are of latents, and `counts` says how many slots of a row are taken, from the first one on.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

BELOW = -1e30
"""z in a slot that is not taken."""
ROWS, SLOTS = 128, 8
"""Rows that are gathered for together, and slots that are scattered together."""

Indices = Int[Array, "batch slots"]
Counts = Int[Array, " batch"]
Groups = Int[Array, "batch slots"] | None


@jax.custom_vjp
def chosen(
    x: Float[Array, "batch d_read"],
    W_enc: Float[Array, "d_read d_sae"],
    b_enc: Float[Array, " d_sae"],
    z: Float[Array, "batch slots"],
    indices: Indices,
    counts: Counts,
) -> Float[Array, "batch slots"]:
    """x W_enc + b_enc of the latents in the slots, which `z` holds already; other slots are far below any threshold."""
    return jnp.where(_taken(indices, counts), z, BELOW)


def _chosen_forward(x: Array, W_enc: Array, b_enc: Array, z: Array, indices: Array, counts: Array) -> tuple[Array, Any]:
    return chosen(x, W_enc, b_enc, z, indices, counts), (x, W_enc, indices, counts)


def _chosen_backward(saved: Any, upstream: Float[Array, "batch slots"]) -> tuple[Array | None, ...]:
    x, W_enc, indices, counts = saved
    by_z = jnp.where(_taken(indices, counts), upstream, 0)
    d_sae = W_enc.shape[1]
    by_W_enc = _scattered(by_z, x[None], indices, counts, None, d_sae).T
    by_b_enc = jnp.zeros(d_sae, upstream.dtype).at[indices].add(by_z)
    by_x = _gathered(1, by_z, W_enc.T, indices, counts, None)[0]
    return by_x, by_W_enc, by_b_enc, None, None, None


chosen.defvjp(_chosen_forward, _chosen_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def written(
    n_groups: int, acts: Float[Array, "batch slots"], W_dec: Float[Array, "d_sae d_write"], indices: Indices, counts: Counts,
    groups: Groups,
) -> Float[Array, "groups batch d_write"]:  # fmt: skip
    """What the latents of each group write. Without `groups` there is one, that of all."""
    return _gathered(n_groups, jnp.where(_taken(indices, counts), acts, 0), W_dec, indices, counts, groups)


def _written_forward(n_groups: int, acts: Array, W_dec: Array, indices: Array, counts: Array, groups: Any) -> tuple[Array, Any]:
    return written(n_groups, acts, W_dec, indices, counts, groups), (acts, W_dec, indices, counts, groups)


def _written_backward(n_groups: int, saved: Any, upstream: Float[Array, "groups batch d_write"]) -> tuple[Array | None, ...]:
    acts, W_dec, indices, counts, groups = saved
    is_taken = _taken(indices, counts)
    by_acts = jnp.where(is_taken, _along(upstream, W_dec, indices, counts, groups), 0)
    by_W_dec = _scattered(jnp.where(is_taken, acts, 0), upstream, indices, counts, groups, len(W_dec))
    return by_acts, by_W_dec, None, None, None


written.defvjp(_written_forward, _written_backward)


def _taken(indices: Indices, counts: Counts) -> Array:
    """Which slots are taken."""
    return jnp.arange(indices.shape[1]) < counts[:, None]


def _gathered(
    n_groups: int, weights: Array, matrix: Float[Array, "d_sae d"], indices: Indices, counts: Counts, groups: Groups
) -> Float[Array, "groups batch d"]:
    """The sum of the matrix's rows at the indices of each row and group, times the weights."""

    def block(weights: Array, indices: Array, groups: Any, n_slots: Array) -> Array:
        rows = jnp.arange(indices.shape[1])

        def add(slot: Array, total: Array) -> Array:
            part = weights[slot][:, None] * matrix[indices[slot]]
            return total + part if groups is None else total.at[groups[slot], rows].add(part)

        shape = (len(rows), matrix.shape[1])
        return jax.lax.fori_loop(0, n_slots, add, jnp.zeros(shape if groups is None else (n_groups, *shape), weights.dtype))

    found = _by_blocks(block, counts, weights, indices, groups)
    if groups is None:
        return found.reshape(1, len(weights), -1)
    return jnp.swapaxes(found, 0, 1).reshape(n_groups, len(weights), -1)


def _along(
    upstream: Float[Array, "groups batch d"], matrix: Float[Array, "d_sae d"], indices: Indices, counts: Counts, groups: Groups
) -> Float[Array, "batch slots"]:
    """The product of each row with the matrix's rows at its indices."""

    def block(upstream: Array, indices: Array, groups: Any, n_slots: Array) -> Array:
        rows = jnp.arange(indices.shape[1])

        def one(slot: Array, found: Array) -> Array:
            given = upstream[:, 0] if groups is None else upstream[rows, groups[slot]]
            return found.at[slot].set(jnp.sum(given * matrix[indices[slot]], axis=1))

        return jax.lax.fori_loop(0, n_slots, one, jnp.zeros(indices.shape, upstream.dtype)).T

    given = jnp.swapaxes(upstream, 0, 1)
    return _by_blocks(block, counts, given, indices, groups, is_by_slot=False).reshape(indices.shape)


def _by_blocks(
    block: Callable[..., Array], counts: Counts, given: Array, indices: Indices, groups: Groups, is_by_slot: bool = True
) -> Array:
    """What `block` makes of ROWS rows at a time, whose slots come first: each goes no further than its fullest row."""
    size = ROWS if len(counts) % ROWS == 0 else len(counts)

    def blocks(rows: Array) -> Array:
        return rows.reshape(-1, size, *rows.shape[1:])

    def one(part: tuple[Any, ...]) -> Array:
        given, indices, groups, counts = part
        slots_first = None if groups is None else groups.T
        return block(given.T if is_by_slot else given, indices.T, slots_first, jnp.max(counts))

    parts = blocks(given), blocks(indices), None if groups is None else blocks(groups), blocks(counts)
    return jax.lax.map(one, parts)


def _scattered(
    weights: Array, rows: Float[Array, "groups batch d"], indices: Indices, counts: Counts, groups: Groups, d_sae: int
) -> Float[Array, "d_sae d"]:
    """The matrix to whose rows at the indices of each row it was added, times the weights. Takes SLOTS slots at a time."""
    padding = ((0, 0), (0, -indices.shape[1] % SLOTS))
    weights, indices = jnp.pad(weights, padding), jnp.pad(indices, padding)
    groups = None if groups is None else jnp.pad(groups, padding)

    def part(found: Array, row: Array, slot: Array) -> Array:
        return jax.lax.dynamic_slice(found, (row, slot), (1, SLOTS))[0]

    def add(place: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        row, slot, total = place
        source = rows[0, row] if groups is None else rows[part(groups, row, slot), row]
        total = total.at[part(indices, row, slot)].add(part(weights, row, slot)[:, None] * source)
        is_over = slot + SLOTS >= counts[row]
        return row + is_over, jnp.where(is_over, 0, slot + SLOTS), total

    start = jnp.int32(0), jnp.int32(0), jnp.zeros((d_sae, rows.shape[2]), weights.dtype)
    return jax.lax.while_loop(lambda place: place[0] < len(counts), add, start)[2]
