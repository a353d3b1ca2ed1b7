"""Figures of sparsity and reconstruction, and the sums over rows that they are made of: the one definition of each."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

DENSITY_EDGES = tuple(x / 2 for x in range(-14, 1))
"""Edges of the latent density histogram, as powers of ten from 1e-7 to 1."""


def reconstruction_sums(
    x: Float[Array, "rows d_in"], x_hat: Float[Array, "rows d_in"], acts: Float[Array, "rows d_sae"]
) -> dict[str, Array]:
    """The sums over rows that `reconstruction` divides; a row of zeros adds nothing to those of ratios."""
    fired = acts > 0
    squares, x_hat_squares = jnp.sum(jnp.square(x), axis=1), jnp.sum(jnp.square(x_hat), axis=1)
    squared_errors, products = jnp.sum(jnp.square(x - x_hat), axis=1), jnp.sum(x * x_hat, axis=1)

    def ratios(numerators: Array, denominators: Array) -> Array:
        return jnp.sum(jnp.where(denominators > 0, numerators / jnp.where(denominators > 0, denominators, 1), 0))

    return {
        "n_active": jnp.sum(fired),
        "squared_error": jnp.sum(squared_errors),
        "squares": jnp.sum(squares),
        "x_hat_squares": jnp.sum(x_hat_squares),
        "products": jnp.sum(products),
        "error_ratios": ratios(squared_errors, squares),
        "norm_ratios": ratios(jnp.sqrt(x_hat_squares), jnp.sqrt(squares)),
        "cosines": ratios(products, jnp.sqrt(squares * x_hat_squares)),
        "rows": jnp.sum(x, axis=0),
        "fired": jnp.sum(fired, axis=0),
    }


def reconstruction(n_rows: int, sums: dict[str, Any]) -> dict[str, Any]:
    """The metrics of sparsity and reconstruction, from `reconstruction_sums` over `n_rows`; their definitions:

    l0: mean count of active latents. mse: mean squared residual norm. fvu: sum of squared residuals over sum of
    squared deviations from the mean; fvu_about_zero: over the sum of squares; fvu_by_row: mean over rows of
    ‖x - x_hat‖² / ‖x‖². relative_reconstruction_bias: E‖x_hat‖² / E[x·x_hat]. l2_ratio: mean of ‖x_hat‖ / ‖x‖.
    cossim: mean cosine of x and x_hat. latent_density: histogram of the share of rows on which a latent fires.
    """
    deviations = float(sums["squares"]) - float((sums["rows"] ** 2).sum()) / n_rows
    squared_error, products = float(sums["squared_error"]), float(sums["products"])
    return {
        "l0": float(sums["n_active"]) / n_rows,
        "fvu": squared_error / deviations if deviations else math.nan,
        "fvu_about_zero": squared_error / float(sums["squares"]) if sums["squares"] else math.nan,
        "fvu_by_row": float(sums["error_ratios"]) / n_rows,
        "mse": squared_error / n_rows,
        "relative_reconstruction_bias": float(sums["x_hat_squares"]) / products if products else math.nan,
        "l2_ratio": float(sums["norm_ratios"]) / n_rows,
        "cossim": float(sums["cosines"]) / n_rows,
        "never_fired_share": float((sums["fired"] == 0).mean()),
        "latent_density": density_histogram(sums["fired"] / n_rows),
        "evaluation_tokens": n_rows,
    }


def density_histogram(density: Float[np.ndarray, " d_sae"]) -> dict[str, Any]:
    """Counts of latents by the power of ten of their density; latents that never fired are counted apart."""
    fires = density[density > 0]
    counts, _ = np.histogram(np.log10(np.maximum(fires, 1e-7)), bins=DENSITY_EDGES)
    return {"log10_edges": list(DENSITY_EDGES), "counts": counts.tolist(), "never": int((density == 0).sum())}
