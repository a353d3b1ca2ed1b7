"""Pure array functions that two or more architectures share. No state, no input or output."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def random_rows(key: Array, n_rows: int, n_columns: int) -> Float[Array, "n_rows n_columns"]:
    """Rows of norm 1 in uniformly random directions."""
    return unit_rows(jax.random.normal(key, (n_rows, n_columns)))


def row_norms(matrix: Float[Array, "rows columns"]) -> Float[Array, " rows"]:
    """Euclidean norm of every row; its gradient at a zero row is zero, not NaN."""
    squares = jnp.sum(jnp.square(matrix), axis=1)
    is_zero = squares == 0
    return jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, squares)))


def unit_rows(matrix: Float[Array, "rows columns"]) -> Float[Array, "rows columns"]:
    """Every row divided by its norm; a zero row stays zero."""
    norms = row_norms(matrix)
    return matrix / jnp.where(norms == 0, 1, norms)[:, None]


def spread(rows: Float[Array, "rows columns"], n: int) -> Float[Array, "sample columns"]:
    """At most `n` of the rows, at equal distances: neighbours are tokens of one text."""
    return rows[:: max(1, -(-len(rows) // n))]


def remove_parallel(
    gradient: Float[Array, "rows columns"], matrix: Float[Array, "rows columns"]
) -> Float[Array, "rows columns"]:
    """The gradient without its component along each row of `matrix`, so that a step does not change the norms.

    Source: Bricken et al. 2023, "Towards Monosemanticity", Autoencoder training; g - (g·d/‖d‖²) d per row d.
    """
    directions = unit_rows(matrix)
    return gradient - jnp.sum(gradient * directions, axis=1, keepdims=True) * directions


def squared_error(x: Float[Array, "batch d_in"], x_hat: Float[Array, "batch d_in"]) -> Float[Array, ""]:
    """Squared residual norm, summed over d_in and averaged over the batch."""
    return jnp.mean(jnp.sum(jnp.square(x - x_hat), axis=1))


def variance_of(x: Float[Array, "batch d_in"]) -> Float[Array, ""]:
    """The squared error of the best constant, the batch's mean."""
    return squared_error(x, jnp.broadcast_to(jnp.mean(x, axis=0), x.shape))


def kth_largest(values: Float[Array, "*rows n"], k: Float[Array, ""] | float | int) -> Float[Array, "*rows"]:
    """The k-th largest of each row of values >= 0; `k` may be traced, so other k need no other compiled step.

    The bits of floats >= 0, read as integers, are in the same order: the answer is found bit by bit.
    """
    is_double = values.dtype == jnp.float64
    real, whole, n_bits = (jnp.float64, jnp.int64, 63) if is_double else (jnp.float32, jnp.int32, 31)
    bits = jax.lax.bitcast_convert_type(values.astype(real), whole)

    def try_bit(index: Array, found: Array) -> Array:
        candidate = found | jnp.left_shift(jnp.ones((), whole), (n_bits - 1 - index).astype(whole))
        enough = jnp.sum(bits >= candidate[..., None], axis=-1) >= k
        return jnp.where(enough, candidate, found)

    found = jax.lax.fori_loop(0, n_bits, try_bit, jnp.zeros(values.shape[:-1], whole))
    return jax.lax.bitcast_convert_type(found, real)


def keep_largest(acts: Float[Array, "*rows n"], k: Float[Array, ""] | float | int) -> Float[Array, "*rows n"]:
    """`acts` (>= 0) with all but the k largest of each row set to 0; equal ones at the border are all kept."""
    return jnp.where(acts >= jax.lax.stop_gradient(kth_largest(acts, k))[..., None], acts, 0)


def geometric_median(rows: Float[Array, "rows d_in"], n_iterations: int = 30) -> Float[Array, " d_in"]:
    """The point with the least sum of distances to the rows, by Weiszfeld's iteration from their mean."""

    def improve(_: Array, point: Array) -> Array:
        weights = 1 / jnp.maximum(row_norms(rows - point), 1e-8)
        return weights @ rows / jnp.sum(weights)

    return jax.lax.fori_loop(0, n_iterations, improve, jnp.mean(rows, axis=0))


def auxk_error(
    residual: Float[Array, "batch d_in"],
    z: Float[Array, "batch d_sae"],
    acts: Float[Array, "batch d_sae"],
    W_dec: Float[Array, "d_sae d_in"],
    is_dead: Bool[Array, " d_sae"],
    k_aux: int,
) -> Float[Array, ""]:
    """The residual's normalised error when the k_aux largest dead latents reconstruct it; 0 if none is dead.

    A latent that fires in this batch (`acts`) is dead no longer: it already reconstructs.

    Source: Gao et al. 2024, "Scaling and evaluating sparse autoencoders", arXiv:2406.04093, appendix A.2. The
    residual carries no gradient. Unlike in the published code, the decoder bias is neither in the target nor added to
    its reconstruction; and unlike in sparsify, few dead latents do not lower the weight.
    """
    residual, is_dead = jax.lax.stop_gradient(residual), is_dead & ~jnp.any(acts > 0, axis=0)

    def error(z: Array, W_dec: Array) -> Array:
        revived = keep_largest(jnp.where(is_dead, jax.nn.relu(z), 0), k_aux)
        variance = variance_of(residual)
        return jnp.where(variance > 0, squared_error(residual, revived @ W_dec) / jnp.where(variance > 0, variance, 1), 0)

    # Mostly nothing is dead, and then nothing is computed.
    return jax.lax.cond(jnp.any(is_dead), error, lambda z, W_dec: jnp.zeros((), z.dtype), z, W_dec)


def _window(z: Array, threshold: Array, bandwidth: Array) -> Array:
    """1 / bandwidth inside the window around the threshold, else 0."""
    return jnp.where(jnp.abs(z - threshold) < bandwidth / 2, 1 / bandwidth, 0)


@jax.custom_vjp
def jumprelu(z: Array, threshold: Array, bandwidth: Array) -> Array:
    """z where z > threshold, else 0. Its derivative by the threshold is that of the expected loss, by a kernel."""
    return jnp.where(z > threshold, z, 0)


def _jumprelu_forward(z: Array, threshold: Array, bandwidth: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return jumprelu(z, threshold, bandwidth), (z, threshold, bandwidth)


def _jumprelu_backward(saved: tuple[Array, Array, Array], upstream: Array) -> tuple[Array, Array, Array]:
    z, threshold, bandwidth = saved
    by_threshold = jnp.sum(-threshold * _window(z, threshold, bandwidth) * upstream, axis=0)
    return jnp.where(z > threshold, upstream, 0), by_threshold, jnp.zeros_like(bandwidth)


jumprelu.defvjp(_jumprelu_forward, _jumprelu_backward)


@jax.custom_vjp
def active(z: Array, threshold: Array, bandwidth: Array) -> Array:
    """1 where z > threshold, else 0, with a kernel for the derivative by the threshold and none by z."""
    return (z > threshold).astype(z.dtype)


def _active_forward(z: Array, threshold: Array, bandwidth: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return active(z, threshold, bandwidth), (z, threshold, bandwidth)


def _active_backward(saved: tuple[Array, Array, Array], upstream: Array) -> tuple[Array, Array, Array]:
    z, threshold, bandwidth = saved
    by_threshold = jnp.sum(-_window(z, threshold, bandwidth) * upstream, axis=0)
    return jnp.zeros_like(z), by_threshold, jnp.zeros_like(bandwidth)


active.defvjp(_active_forward, _active_backward)


def normalized_error(x: Float[Array, "batch d_in"], x_hat: Float[Array, "batch d_in"]) -> Float[Array, ""]:
    """The squared error over that of the best constant; 0 for a batch without variance."""
    variance = variance_of(x)
    return jnp.where(variance > 0, squared_error(x, x_hat) / jnp.where(variance > 0, variance, 1), 0)


def keep_largest_of_batch(
    acts: Float[Array, "batch d_sae"], k: Float[Array, ""] | float | int
) -> tuple[Float[Array, "batch d_sae"], Float[Array, ""]]:
    """`acts` (>= 0) with all but the k largest per row *on average* set to 0, and the smallest positive one kept.

    The smallest is 0 if nothing is positive.
    """
    flat = acts.ravel()
    kept = keep_largest(flat, jnp.round(k * acts.shape[0]))
    smallest = jnp.min(jnp.where(kept > 0, kept, jnp.inf))
    return kept.reshape(acts.shape), jnp.where(jnp.isfinite(smallest), smallest, 0)


def follow_threshold(
    threshold: Float[Array, ""], smallest: Float[Array, ""], rate: Float[Array, ""] | float
) -> Float[Array, ""]:
    """The running average of the smallest latent that is kept; a negative threshold has seen none yet."""
    smallest = jax.lax.stop_gradient(smallest)
    moved = jnp.where(threshold < 0, smallest, (1 - rate) * threshold + rate * smallest)
    return jnp.where(smallest > 0, moved, threshold)
