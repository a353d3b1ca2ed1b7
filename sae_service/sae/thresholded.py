"""What BatchTopK and Matryoshka share: a coder and one threshold that follows the batches."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sae_service.pytree import PyTree
from sae_service.sae.coder import FREE_NORM, Coder, random_coder


class ThresholdedCoder(PyTree):
    """A coder and one threshold for all latents, which moves by averaging; it is negative before the first batch."""

    coder: Coder
    threshold: Float[Array, ""]


def random_thresholded_coder(key: Any, d_in: int, d_sae: int) -> ThresholdedCoder:
    """A random coder whose threshold has seen no batch; its decoder's norms are free to grow."""
    return ThresholdedCoder(random_coder(key, d_in, d_sae, FREE_NORM), -jnp.ones(()))






def follow_threshold(
    threshold: Float[Array, ""], smallest: Float[Array, ""], rate: Float[Array, ""] | float
) -> Float[Array, ""]:
    """The running average of the smallest latent that is kept; a negative threshold has seen none yet."""
    smallest = jax.lax.stop_gradient(smallest)
    moved = jnp.where(threshold < 0, smallest, (1 - rate) * threshold + rate * smallest)
    return jnp.where(smallest > 0, moved, threshold)
