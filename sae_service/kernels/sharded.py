"""The dense operations where the latents of a batch, or its rows, lie on several devices.

JAX splits products, sums and counts by itself. It is told what it would not find: that each device chooses the largest of
its own first, and what the first latents of each width are on a device that has some of them.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from sae_service.kernels import dense
from sae_service.kernels.latents import Latents
from sae_service.kernels.ops import Ops
from sae_service.kernels.precision import product
from sae_service.kernels.selection import Number, kth_largest, kth_largest_at_once

AXIS = "devices"
"""The one axis of a mesh."""

Chosen = Callable[[Array, Number], Array]
"""(values [batch, d_sae], k) -> the k-th largest of each row, [batch]."""


def by_latents(mesh: Mesh, n_candidates: int | None) -> Ops:
    """The operations where each device has some of the latents, for all rows.

    Args:
        n_candidates: at least as many as a row keeps of the latents, where that number is known: so many of each device are
            gathered. None where nothing is chosen by rows.
    """
    by_counts = partial(_keep, kth_largest_at_once)
    by_candidates = by_counts if n_candidates is None else partial(_keep, partial(kth_of_candidates, mesh, n_candidates))
    return replace(
        dense.DENSE,
        encode_topk=partial(dense.encode_topk, keep=by_candidates),
        decode_prefixes=partial(decode_prefixes, mesh),
        keep_largest=by_counts,
        can_gather=False,
    )


def by_rows(mesh: Mesh) -> Ops:
    """The operations where each device has some of the rows, with all their latents."""
    rows = PartitionSpec(AXIS, None)
    # The search begins with a value that all devices share; they part in its first round, which JAX's check does not allow.
    own = jax.shard_map(
        kth_largest, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=PartitionSpec(AXIS), check_vma=False
    )
    keep = partial(_keep, own)
    return replace(dense.DENSE, encode_topk=partial(dense.encode_topk, keep=keep), keep_largest=keep)


def _keep(chosen: Chosen, acts: Float[Array, "batch d_sae"], k: Number) -> Float[Array, "batch d_sae"]:
    """See `selection.keep_largest`."""
    return jnp.where(acts >= chosen(jax.lax.stop_gradient(acts), jnp.asarray(k))[:, None], acts, 0)


def kth_of_candidates(
    mesh: Mesh, n_candidates: int, values: Float[Array, "batch d_sae"], k: Number
) -> Float[Array, " batch"]:
    """The k-th largest of each row of values >= 0, exactly: it is among the k largest of the device that has it.

    Args:
        n_candidates: of each device, at least k.
    """
    latents = PartitionSpec(None, AXIS)
    n_own = min(n_candidates, values.shape[1] // mesh.size)
    own = jax.shard_map(lambda part: jax.lax.top_k(part, n_own)[0], mesh=mesh, in_specs=latents, out_specs=latents)
    gathered = jax.lax.with_sharding_constraint(own(values), NamedSharding(mesh, PartitionSpec()))
    return kth_largest(gathered, k)


def decode_prefixes(
    mesh: Mesh, latents: Latents, W_dec: Float[Array, "d_sae d_write"], widths: tuple[int, ...]
) -> Float[Array, "prefixes batch d_write"]:
    """What the first latents of each width write. Each device has its own share of the latents between two widths."""
    n_own = len(W_dec) // mesh.size

    def on_device(index: int, acts: Array, W_dec: Array) -> Array:
        edges = [min(max(width - index * n_own, 0), n_own) for width in (0, *widths)]
        return jnp.stack([product(acts[:, start:end], W_dec[start:end]) for start, end in pairwise(edges)])

    def own(acts: Array, W_dec: Array) -> Array:
        branches = [partial(on_device, index) for index in range(mesh.size)]
        return jax.lax.psum(jax.lax.switch(jax.lax.axis_index(AXIS), branches, acts, W_dec), AXIS)

    specs = PartitionSpec(None, AXIS), PartitionSpec(AXIS, None)
    groups = jax.shard_map(own, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())(latents.acts, W_dec)
    return jnp.cumsum(groups, axis=0)
