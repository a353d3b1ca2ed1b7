"""The latents of a batch as a loss sees them: all of each row, or only those that its row depends on.

A loss is written once for both: what it computes elementwise from `z` and `acts` is the same, and what belongs to a
latent, such as a threshold, is asked for with `of`.
"""

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from sae_service.pytree import PyTree


class Latents(PyTree):
    """All latents: pre-activations z, and activations, which are 0 where a latent is not active.

    Attributes:
        most: how many latents a row depends on, in the row that has the most.
    """

    z: Float[Array, "batch slots"]
    acts: Float[Array, "batch slots"]
    most: Int[Array, ""] | int = 0

    def of(self, by_latent: Float[Array, " d_sae"]) -> Float[Array, "*batch slots"]:
        """What belongs to each latent, as it stands beside `z`."""
        return by_latent

    def fired(self) -> Bool[Array, " d_sae"]:
        """Whether each latent is active in any row."""
        return jnp.any(self.acts > 0, axis=0)

    def n_active(self) -> Float[Array, ""]:
        """Count of active latents, summed over the rows, which may be more than an integer holds."""
        return jnp.sum(jnp.sum(self.acts > 0, axis=1).astype(jnp.float32))


class SomeLatents(Latents):
    """Some latents of each row, in slots. All others are without effect on the loss, unless `most` exceeds the slots.

    Attributes:
        indices: the latent in each slot.
        counts: how many slots of each row are taken. In the others z is far below any threshold.
    """

    indices: Int[Array, "batch slots"] = struct.field(kw_only=True)
    counts: Int[Array, " batch"] = struct.field(kw_only=True)
    d_sae: int = struct.field(pytree_node=False, kw_only=True)

    def of(self, by_latent: Float[Array, " d_sae"]) -> Float[Array, "batch slots"]:
        """What belongs to the latent in each slot."""
        return by_latent[self.indices]

    def fired(self) -> Bool[Array, " d_sae"]:
        """Whether each latent is active in any row."""
        return jnp.zeros(self.d_sae, bool).at[self.indices].max(self.acts > 0)
