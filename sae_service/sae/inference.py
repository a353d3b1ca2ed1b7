"""The public form of every trained SAE."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from sae_service.kernels.selection import keep_largest
from sae_service.numerics import exact
from sae_service.pytree import PyTree
from sae_service.sae.sites import Sites, columns


class InferenceSAE(PyTree):
    """The public form of every trained SAE, in units of the model's raw activations.

    z = x W_enc + b_enc;  acts = ReLU(z) where z > threshold, else 0;  y_hat = acts W_dec + b_dec (+ x W_skip).
    With k, only the k largest acts of each row are kept. y_hat is the reconstruction of x, or what a transcoder writes.
    No pre-encoder bias and no input scale: both are folded in.

    Attributes:
        sites: where it reads and writes; None for weights whose file does not say.
    """

    W_enc: Float[Array, "d_read d_sae"]
    b_enc: Float[Array, " d_sae"]
    W_dec: Float[Array, "d_sae d_write"]
    b_dec: Float[Array, " d_write"]
    threshold: Float[Array, " d_sae"]
    W_skip: Float[Array, "d_read d_write"] | None = None
    k: int | None = struct.field(pytree_node=False, default=None)
    sites: Sites | None = struct.field(pytree_node=False, default=None)

    def encode(self, x: Float[Array, "batch d_read"]) -> Float[Array, "batch d_sae"]:
        """Activations of the latents, in units of what is written (decoder rows have norm 1)."""
        z = exact(x, self.W_enc) + self.b_enc
        acts = jnp.where(z > self.threshold, jax.nn.relu(z), 0)
        return acts if self.k is None else keep_largest(acts, self.k)

    def decode(
        self, acts: Float[Array, "batch d_sae"], x: Float[Array, "batch d_read"] | None = None
    ) -> Float[Array, "batch d_write"]:
        """What `acts` write, and with a bypass what it carries over from `x`, which it then needs."""
        y_hat = exact(acts, self.W_dec) + self.b_dec
        if self.W_skip is None:
            return y_hat
        assert x is not None, "an SAE with a bypass needs what it has read"
        return y_hat + exact(x, self.W_skip)


SAEs = Mapping[str, Callable[[], InferenceSAE]]
"""What loads each SAE, for raw activations and with its sites, by the SAE's name."""


def unscaled(sae: InferenceSAE, read_scales: Mapping[str, float], write_scales: Mapping[str, float]) -> InferenceSAE:
    """The SAE for raw activations, of one that was trained on activations times one scalar a hook point.

    An autoencoder of one hook point keeps its weights: biases and thresholds are divided by the scale. In general
    latents come out in units of the first hook point that is written, whose decoder columns stay as they are.
    """
    assert sae.sites is not None
    read, write = columns(sae.sites.read, read_scales), columns(sae.sites.write, write_scales)
    unit = np.float32(write_scales[sae.sites.write[0][0]])
    return sae.replace(
        W_enc=_times(sae.W_enc, (read / unit)[:, None]),
        b_enc=sae.b_enc / unit,
        W_dec=_times(sae.W_dec, unit / write),
        b_dec=sae.b_dec / write,
        threshold=sae.threshold / unit,
        W_skip=None if sae.W_skip is None else sae.W_skip * (read[:, None] / write),
    )


def _times(matrix: Any, factors: np.ndarray) -> Any:
    """The product, and the matrix itself where it is the same."""
    return matrix if np.all(factors == 1) else matrix * factors
