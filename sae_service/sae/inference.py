"""The public form of every trained SAE."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from sae_service.kernels.selection import keep_largest
from sae_service.pytree import PyTree


class InferenceSAE(PyTree):
    """The public form of every trained SAE, in units of the model's raw activations.

    z = x W_enc + b_enc;  acts = ReLU(z) where z > threshold, else 0;  x_hat = acts W_dec + b_dec.
    With k, only the k largest acts of each row are kept.
    No pre-encoder bias and no input scale: both are folded in.
    """

    W_enc: Float[Array, "d_in d_sae"]
    b_enc: Float[Array, " d_sae"]
    W_dec: Float[Array, "d_sae d_in"]
    b_dec: Float[Array, " d_in"]
    threshold: Float[Array, " d_sae"]
    k: int | None = struct.field(pytree_node=False, default=None)

    def encode(self, x: Float[Array, "batch d_in"]) -> Float[Array, "batch d_sae"]:
        """Activations of the latents, in units of ‖x‖ (decoder rows have norm 1)."""
        z = x @ self.W_enc + self.b_enc
        acts = jnp.where(z > self.threshold, jax.nn.relu(z), 0)
        return acts if self.k is None else keep_largest(acts, self.k)

    def decode(self, acts: Float[Array, "batch d_sae"]) -> Float[Array, "batch d_in"]:
        """The reconstruction of `acts`."""
        return acts @ self.W_dec + self.b_dec


def unscaled(sae: InferenceSAE, activation_scale: float) -> InferenceSAE:
    """The SAE for raw activations, of one that was trained on activations times `activation_scale`.

    Weights stay; biases and thresholds are divided by the scale, and the latents come out in raw units.
    """
    return sae.replace(
        b_enc=sae.b_enc / activation_scale,
        b_dec=sae.b_dec / activation_scale,
        threshold=sae.threshold / activation_scale,
    )
