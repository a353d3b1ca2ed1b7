"""Dead latents started anew, in the directions of rows that are badly reconstructed.

Source: Bricken et al. 2023, "Towards Monosemanticity", Neuron resampling: a row is chosen with a probability
proportional to its squared loss; the decoder row takes its direction, the encoder column the same direction at a fifth
of the living ones' mean norm, the bias becomes 0. Rows are centred by `b_dec` first, and chosen from the batch in hand,
which is a random sample because the stream is shuffled; no row is chosen twice, since latents that start as one would
stay one. Unlike in dictionary_learning, the encoder takes the row's
direction and not the row itself, and the probability grows with the square of the squared error. Whether the learning
rate warms up again is `lr_warm_up_again`: as in the paper of the gated SAE, and not in this source.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sae_service.numerics import row_norms, unit_rows
from sae_service.sae.architecture import Rows
from sae_service.sae.coder import Coder

ENCODER_SHARE = 0.2


def drawn_rows(rows: Rows, y_hat: Float[Array, "batch d_write"], key: Any) -> Int[Array, " batch"]:
    """All rows in the order in which they are drawn, without replacement, each with a probability proportional to the
    square of its squared error.
    """
    errors = jnp.sum(jnp.square(rows.y - y_hat), axis=1)
    # The order of log weights plus Gumbel noise is that of draws without replacement.
    return jnp.argsort(-(2 * jnp.log(jnp.maximum(errors, 1e-30)) + jax.random.gumbel(key, errors.shape)))


def mean_norm_of_living(matrix: Float[Array, "d_sae d_in"], is_dead: Bool[Array, " d_sae"]) -> Float[Array, ""]:
    """Mean row norm of the latents that are not dead; 1 if all are."""
    n_living = jnp.sum(~is_dead)
    total = jnp.sum(jnp.where(is_dead, 0, row_norms(matrix)))
    return jnp.where(n_living > 0, total / jnp.maximum(n_living, 1), 1)


def resample_coder(
    coder: Coder, rows: Rows, y_hat: Float[Array, "batch d_write"], is_dead: Bool[Array, " d_sae"], key: Any
) -> tuple[Coder, Coder]:
    """The coder with its dead latents, at most as many as rows, started anew, and the masks of what was changed.

    A transcoder's latent reads the direction of a row's x, and writes that of its y.
    """
    chosen = drawn_rows(rows, y_hat, key)[jnp.clip(jnp.cumsum(is_dead) - 1, 0, len(rows.x) - 1)]
    centre = coder.b_dec if coder.sites.is_autoencoder else jnp.mean(rows.x, axis=0)
    read, written = unit_rows(rows.x[chosen] - centre), unit_rows(rows.y[chosen] - coder.b_dec)
    encoder = ENCODER_SHARE * mean_norm_of_living(coder.W_enc.T, is_dead) * read
    decoder = mean_norm_of_living(coder.W_dec, is_dead) * written
    fresh = coder.replace(
        W_enc=jnp.where(is_dead, encoder.T, coder.W_enc),
        b_enc=jnp.where(is_dead, 0, coder.b_enc),
        W_dec=jnp.where(is_dead[:, None], decoder, coder.W_dec),
    )
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), coder)
    touched = nothing.replace(
        W_enc=jnp.broadcast_to(is_dead, coder.W_enc.shape),
        b_enc=is_dead,
        W_dec=jnp.broadcast_to(is_dead[:, None], coder.W_dec.shape),
    )
    return fresh, touched
