"""AuxK: dead latents are trained on what the living ones leave over."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sae_service.kernels.latents import Latents
from sae_service.kernels.ops import Ops
from sae_service.kernels.precision import product
from sae_service.numerics import squared_error, variance_of
from sae_service.sae.dead import OfLatents, of_dead


def auxk_error(
    residual: Float[Array, "batch d_write"],
    latents: Latents,
    encoder: tuple[Float[Array, "batch d_read"], Float[Array, "d_read d_sae"], Float[Array, " d_sae"]],
    W_dec: Float[Array, "d_sae d_write"],
    is_dead: Bool[Array, " d_sae"],
    k_aux: int,
    ops: Ops,
) -> Float[Array, ""]:
    """The residual's normalised error when the dead latents with the k_aux largest z reconstruct it; 0 if none is dead.

    A latent that fires in this batch is dead no longer: it already reconstructs. With k_aux 0, half of the width.

    Args:
        encoder: x, W_enc and b_enc, of which `latents` were made.

    Source: Gao et al. 2024, "Scaling and evaluating sparse autoencoders", arXiv:2406.04093, appendix A.2. The
    residual carries no gradient. Unlike in the published code, the decoder bias is neither in the target nor added to
    its reconstruction; and unlike in sparsify, few dead latents do not lower the weight.
    """
    residual, is_dead = jax.lax.stop_gradient(residual), is_dead & ~latents.fired()
    x, W_enc, b_enc = encoder
    error = partial(_error, k_aux or residual.shape[1] // 2, ops.keep_largest)
    found: Any = of_dead(error, ops.can_gather, is_dead, x, OfLatents(W_enc, b_enc, W_dec), residual)
    return found


def _error(k_aux: int, keep: Callable[[Array, int], Array], z: Array, is_dead: Array, W_dec: Array, residual: Array) -> Array:
    revived = jnp.where(is_dead, jax.nn.relu(z), 0)
    if z.shape[1] > k_aux:
        revived = keep(revived, k_aux)
    variance = variance_of(residual)
    return jnp.where(variance > 0, squared_error(residual, product(revived, W_dec)) / jnp.where(variance > 0, variance, 1), 0)
