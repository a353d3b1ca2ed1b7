"""Pure array functions that two or more architectures share. No state, no input or output."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def exact(
    a: Float[Array | np.ndarray, "*rows inner"], b: Float[Array | np.ndarray, "inner columns"]
) -> Float[Array, "*rows columns"]:
    """a b, whose factors are not rounded, whatever the device and the setting."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


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


def geometric_median(rows: Float[Array, "rows d_in"], n_iterations: int = 30) -> Float[Array, " d_in"]:
    """The point with the least sum of distances to the rows, by Weiszfeld's iteration from their mean."""

    def improve(_: Array, point: Array) -> Array:
        weights = 1 / jnp.maximum(row_norms(rows - point), 1e-8)
        return exact(weights, rows) / jnp.sum(weights)

    return jax.lax.fori_loop(0, n_iterations, improve, jnp.mean(rows, axis=0))


def normalized_error(x: Float[Array, "batch d_in"], x_hat: Float[Array, "batch d_in"]) -> Float[Array, ""]:
    """The squared error over that of the best constant; 0 for a batch without variance."""
    variance = variance_of(x)
    return jnp.where(variance > 0, squared_error(x, x_hat) / jnp.where(variance > 0, variance, 1), 0)


