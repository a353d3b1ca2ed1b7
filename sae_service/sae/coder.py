"""An encoder and a decoder with their biases: the parameters that most architectures have, and what they do with them.

An autoencoder may subtract the decoder's bias from its input (`centred_bias`). That is done through the encoder's bias,
x W + (b - b_dec W), since the gradient of (x - b_dec) W would cost one more product as large as the others. What a
transcoder reads is not what it writes, so its input stays as it is.
Decoder rows have norm 1 after every step (`tangent`, `normalized`), or have any norm and are read `with_unit_rows`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from sae_service.kernels.precision import product
from sae_service.kernels.selection import keep_largest
from sae_service.numerics import exact, geometric_median, random_rows, remove_parallel, row_norms, spread, unit_rows
from sae_service.pytree import PyTree
from sae_service.sae.architecture import Rows
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.sites import Sites

SCALING_ROWS = 256
FREE_NORM = 0.5


class Coder(PyTree):
    """Encoder, decoder and their biases, and with a bypass its matrix. `sites`: where it reads and writes."""

    W_enc: Float[Array, "d_read d_sae"]
    b_enc: Float[Array, " d_sae"]
    W_dec: Float[Array, "d_sae d_write"]
    b_dec: Float[Array, " d_write"]
    W_skip: Float[Array, "d_read d_write"] | None = None
    sites: Sites = struct.field(pytree_node=False, kw_only=True)


def random_coder(key: Any, sites: Sites, d_sae: int, norm: float = 1.0, skip: bool = False) -> Coder:
    """Decoder rows of a norm in random directions, biases 0, and a bypass that carries nothing yet.

    The encoder is the decoder's transpose; a transcoder's has random directions of its own.
    """
    W_dec = norm * random_rows(key, d_sae, sites.d_write)
    own_key = jax.random.fold_in(key, 1)
    W_enc = W_dec if sites.is_autoencoder else norm * random_rows(own_key, d_sae, sites.d_read)
    W_skip = jnp.zeros((sites.d_read, sites.d_write)) if skip else None
    return Coder(W_enc.T, jnp.zeros(d_sae), W_dec, jnp.zeros(sites.d_write), W_skip, sites=sites)


def centred_bias(coder: Coder) -> Float[Array, " d_sae"]:
    """The encoder's bias of an autoencoder that subtracts `b_dec` from its input; a transcoder's as it is."""
    return coder.b_enc - exact(coder.b_dec, coder.W_enc) if coder.sites.is_autoencoder else coder.b_enc


def completed(coder: Coder, decoded: Float[Array, "batch d_write"], x: Float[Array, "batch d_read"]) -> Array:
    """What is written: that of the latents, the decoder's bias and what the bypass carries."""
    y_hat = decoded + coder.b_dec
    return y_hat if coder.W_skip is None else y_hat + product(x, coder.W_skip)


def norms(coder: Coder) -> Float[Array, " d_sae"]:
    """The norm of each latent's decoder row; of a crosscoder the sum of its norms at the hook points that it writes.

    Source (the sum): Lindsey et al. 2024, "Sparse Crosscoders for Cross-Layer Features and Model Diffing".
    """
    total, start = jnp.zeros(len(coder.W_dec)), 0
    for _, width in coder.sites.write:
        total, start = total + row_norms(coder.W_dec[:, start : start + width]), start + width
    return total


def with_unit_rows(coder: Coder) -> Coder:
    """The coder that does the same with decoder rows of norm 1; the encoder takes the norms up."""
    found = norms(coder)
    unit = coder.W_dec / jnp.where(found == 0, 1, found)[:, None]
    return coder.replace(W_enc=coder.W_enc * found, b_enc=coder.b_enc * found, W_dec=unit)


def tangent(coder: Coder, gradients: Coder) -> Coder:
    """The gradients without what would change the decoder's norms."""
    return gradients.replace(W_dec=remove_parallel(gradients.W_dec, coder.W_dec))


def normalized(coder: Coder) -> Coder:
    """Decoder rows of norm 1."""
    return coder.replace(W_dec=unit_rows(coder.W_dec))


def with_median(coder: Coder, rows: Rows) -> Coder:
    """`b_dec` at the geometric median of what is to be written."""
    return coder.replace(b_dec=geometric_median(rows.y))


def answering(coder: Coder, rows: Rows) -> Coder:
    """A transcoder whose latents write, at their norms, in the directions in which y moves with them.

    It begins with latents that fire for the x that they were drawn for, and an encoder centred on the mean of x. An
    autoencoder needs none of this: its encoder begins as the decoder's transpose.
    """
    if coder.sites.is_autoencoder:
        return coder
    x, y = rows.x - jnp.mean(rows.x, axis=0), rows.y - jnp.mean(rows.y, axis=0)
    acts = jax.nn.relu(exact(x, coder.W_enc))
    W_dec = row_norms(coder.W_dec)[:, None] * unit_rows(exact(acts.T, y))
    return coder.replace(b_enc=coder.b_enc - exact(jnp.mean(rows.x, axis=0), coder.W_enc), W_dec=W_dec)


def fitted_to_largest(coder: Coder, rows: Rows, k: float) -> Coder:
    """With the median, and the encoder scaled so that the k largest latents of a row write one of its length.

    Source: Gao et al. 2024, arXiv:2406.04093, appendix A.1.
    """
    coder = answering(with_median(coder, rows), rows)
    x, y = spread(rows.x, SCALING_ROWS), spread(rows.y, SCALING_ROWS)
    written = exact(keep_largest(jax.nn.relu(exact(x, coder.W_enc) + centred_bias(coder)), k), coder.W_dec)
    wanted, found = jnp.mean(row_norms(y - coder.b_dec)), jnp.mean(row_norms(written))
    ratio = jnp.where((wanted > 0) & (found > 0), wanted / jnp.maximum(found, 1e-30), 1)
    return coder.replace(W_enc=ratio * coder.W_enc, b_enc=ratio * coder.b_enc)


def exported(coder: Coder, b_enc: Float[Array, " d_sae"], threshold: Float[Array, " d_sae"], k: int | None = None) -> InferenceSAE:
    """The public form, with an encoder's bias into which everything is folded."""
    return InferenceSAE(coder.W_enc, b_enc, coder.W_dec, coder.b_dec, threshold, coder.W_skip, k, coder.sites)
