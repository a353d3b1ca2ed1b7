"""An encoder and a decoder with their biases: the parameters that most architectures have, and what they do with them.

The decoder's bias is subtracted from the input too. Decoder rows have norm 1 after every step (`tangent`, `normalized`),
or have any norm and are read `with_unit_rows`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sae_service.kernels.selection import keep_largest
from sae_service.numerics import geometric_median, random_rows, remove_parallel, row_norms, spread, unit_rows
from sae_service.pytree import PyTree
from sae_service.sae.inference import InferenceSAE

SCALING_ROWS = 256
FREE_NORM = 0.5


class Coder(PyTree):
    """Encoder, decoder and their biases."""

    W_enc: Float[Array, "d_in d_sae"]
    b_enc: Float[Array, " d_sae"]
    W_dec: Float[Array, "d_sae d_in"]
    b_dec: Float[Array, " d_in"]

    def encode(self, x: Float[Array, "batch d_in"]) -> Float[Array, "batch d_sae"]:
        """The pre-activations z."""
        return (x - self.b_dec) @ self.W_enc + self.b_enc

    def decode(self, acts: Float[Array, "batch d_sae"]) -> Float[Array, "batch d_in"]:
        """The reconstruction."""
        return acts @ self.W_dec + self.b_dec


def random_coder(key: Any, d_in: int, d_sae: int, norm: float = 1.0) -> Coder:
    """Decoder rows of a norm in random directions, the encoder their transpose, biases 0."""
    W_dec = norm * random_rows(key, d_sae, d_in)
    return Coder(W_dec.T, jnp.zeros(d_sae), W_dec, jnp.zeros(d_in))


def centred(coder: Coder, rows: Float[Array, "rows d_in"]) -> Coder:
    """`b_dec` at the geometric median of the rows."""
    return coder.replace(b_dec=geometric_median(rows))


def fitted_to_largest(coder: Coder, rows: Float[Array, "rows d_in"], k: float) -> Coder:
    """Centred, and the encoder scaled so that the k largest latents of a row reconstruct one of its length.

    Source: Gao et al. 2024, arXiv:2406.04093, appendix A.1.
    """
    coder = centred(coder, rows)
    sample = spread(rows, SCALING_ROWS)
    reconstructed = keep_largest(jax.nn.relu(coder.encode(sample)), k) @ coder.W_dec
    wanted, found = jnp.mean(row_norms(sample - coder.b_dec)), jnp.mean(row_norms(reconstructed))
    ratio = jnp.where((wanted > 0) & (found > 0), wanted / jnp.maximum(found, 1e-30), 1)
    return coder.replace(W_enc=ratio * coder.W_enc)


def with_unit_rows(coder: Coder) -> Coder:
    """The coder that does the same with decoder rows of norm 1; the encoder takes the norms up."""
    norms = row_norms(coder.W_dec)
    return Coder(coder.W_enc * norms, coder.b_enc * norms, unit_rows(coder.W_dec), coder.b_dec)


def tangent(coder: Coder, gradients: Coder) -> Coder:
    """The gradients without what would change the decoder's norms."""
    return gradients.replace(W_dec=remove_parallel(gradients.W_dec, coder.W_dec))


def normalized(coder: Coder) -> Coder:
    """Decoder rows of norm 1."""
    return coder.replace(W_dec=unit_rows(coder.W_dec))


def on_coder(change: Any) -> Any:
    """A function of coders as one of parameters that have a field `coder`."""

    def changed(*parameters: Any) -> Any:
        return parameters[-1].replace(coder=change(*(item.coder for item in parameters)))

    return changed


def exported(coder: Coder, threshold: Float[Array, " d_sae"], k: int | None = None) -> InferenceSAE:
    """The public form: the subtraction of `b_dec` folded into `b_enc`."""
    b_enc = coder.b_enc - coder.b_dec @ coder.W_enc
    return InferenceSAE(coder.W_enc, b_enc, coder.W_dec, coder.b_dec, threshold, k)
