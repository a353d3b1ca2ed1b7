"""The dense reference of each operation on latents: every latent of every row is computed and kept."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sae_service.kernels.jump import jumprelu
from sae_service.kernels.latents import Latents
from sae_service.kernels.ops import Ops
from sae_service.kernels.precision import product
from sae_service.kernels.selection import Number, keep_largest, keep_largest_of_batch


def _most(mask: Bool[Array, "batch d_sae"]) -> Int[Array, ""]:
    """The largest count of a row."""
    return jnp.max(jnp.sum(mask, axis=1, dtype=jnp.int32))


def encode(
    x: Float[Array, "batch d_read"], W_enc: Float[Array, "d_read d_sae"], b_enc: Float[Array, " d_sae"]
) -> Latents:
    """Every latent that is above 0."""
    z = product(x, W_enc) + b_enc
    return Latents(z, jax.nn.relu(z), _most(z > 0))


def encode_topk(
    x: Float[Array, "batch d_read"], W_enc: Float[Array, "d_read d_sae"], b_enc: Float[Array, " d_sae"], k: Number,
    keep: Callable[[Array, Number], Array] = keep_largest,
) -> Latents:  # fmt: skip
    """The k largest latents of each row, which `keep` leaves."""
    z = product(x, W_enc) + b_enc
    acts = keep(jax.nn.relu(z), k)
    return Latents(z, acts, _most(acts > 0))


def encode_topk_of_batch(
    x: Float[Array, "batch d_read"], W_enc: Float[Array, "d_read d_sae"], b_enc: Float[Array, " d_sae"], k: Number
) -> tuple[Latents, Float[Array, ""]]:
    """The k largest latents a row on average, and the smallest of them."""
    z = product(x, W_enc) + b_enc
    acts, smallest = keep_largest_of_batch(jax.nn.relu(z), k)
    return Latents(z, acts, _most(acts > 0)), smallest


def encode_above(
    x: Float[Array, "batch d_read"],
    W_enc: Float[Array, "d_read d_sae"],
    b_enc: Float[Array, " d_sae"],
    threshold: Float[Array, " d_sae"],
    bandwidth: Float[Array, ""],
) -> Latents:
    """The latents above their thresholds."""
    z = product(x, W_enc) + b_enc
    return Latents(z, jumprelu(z, threshold, bandwidth), _most(z - threshold > -bandwidth / 2))


def decode(latents: Latents, W_dec: Float[Array, "d_sae d_write"]) -> Float[Array, "batch d_write"]:
    """What the latents write."""
    return product(latents.acts, W_dec)


def decode_prefixes(
    latents: Latents, W_dec: Float[Array, "d_sae d_write"], widths: tuple[int, ...]
) -> Float[Array, "prefixes batch d_write"]:
    """What the first latents of each width write."""
    groups = zip((0, *widths[:-1]), widths, strict=True)
    return jnp.cumsum(jnp.stack([product(latents.acts[:, start:end], W_dec[start:end]) for start, end in groups]), axis=0)


DENSE = Ops(encode, encode_topk, encode_topk_of_batch, encode_above, decode, decode_prefixes)
