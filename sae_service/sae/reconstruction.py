"""Figures of sparsity and reconstruction, and the sums over rows that they are made of: the one definition of each.

y is what an SAE is to write (what it reads, unless it is a transcoder), y_hat what it writes.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

DENSITY_EDGES = tuple(x / 2 for x in range(-14, 1))
"""Edges of the latent density histogram, as powers of ten from 1e-7 to 1."""


def reconstruction_sums(
    y: Float[Array, "rows d_write"], y_hat: Float[Array, "rows d_write"], acts: Float[Array, "rows d_sae"],
    weights: Float[Array, " rows"], widths: tuple[int, ...] = (),
) -> dict[str, Any]:  # fmt: skip
    """The sums over rows that `reconstruction` divides.

    Args:
        weights: 1 for a row that counts, 0 for one that only fills up the shape.
        widths: those of the hook points that are written, side by side in y: of several, each gets sums of its own.
    """
    counts = weights > 0
    fired = (acts > 0) & counts[:, None]
    edges = np.cumsum((0, *widths)) if len(widths) > 1 else ()
    return {
        "n_rows": jnp.sum(counts),
        "n_active": jnp.sum(fired),
        "fired": jnp.sum(fired, axis=0),
        **error_sums(y, y_hat, weights),
        "by_site": [
            error_sums(y[:, first:last], y_hat[:, first:last], weights)
            for first, last in pairwise(edges)
        ],
    }  # fmt: skip


def error_sums(
    y: Float[Array, "rows d_write"], y_hat: Float[Array, "rows d_write"], weights: Float[Array, " rows"]
) -> dict[str, Array]:
    """The sums over rows that `errors` divides; a row of zeros adds nothing to those of ratios."""
    squares, y_hat_squares = jnp.sum(jnp.square(y), axis=1), jnp.sum(jnp.square(y_hat), axis=1)
    squared_errors, products = jnp.sum(jnp.square(y - y_hat), axis=1), jnp.sum(y * y_hat, axis=1)

    def ratios(numerators: Array, denominators: Array) -> Array:
        return jnp.sum(weights * jnp.where(denominators > 0, numerators / jnp.where(denominators > 0, denominators, 1), 0))

    return {
        "squared_error": jnp.sum(weights * squared_errors),
        "squares": jnp.sum(weights * squares),
        "y_hat_squares": jnp.sum(weights * y_hat_squares),
        "products": jnp.sum(weights * products),
        "error_ratios": ratios(squared_errors, squares),
        "norm_ratios": ratios(jnp.sqrt(y_hat_squares), jnp.sqrt(squares)),
        "cosines": ratios(products, jnp.sqrt(squares * y_hat_squares)),
        "rows": jnp.sum(weights[:, None] * y, axis=0),
    }


def reconstruction(sums: dict[str, Any], written: Sequence[str] = ()) -> dict[str, Any]:
    """The metrics of sparsity and reconstruction, from `reconstruction_sums`; beside those of `errors` they are:

    l0: mean count of active latents. latent_density: histogram of the share of rows on which a latent fires.
    never_fired_share: share of latents that fire on no row. by_hook_point: of several hook points in `written`, those
    of `errors` at each.
    """
    n_rows = int(sums["n_rows"])
    found = {
        "l0": float(sums["n_active"]) / n_rows,
        **errors(n_rows, sums),
        "never_fired_share": float((sums["fired"] == 0).mean()),
        "latent_density": density_histogram(sums["fired"] / n_rows),
        "evaluation_tokens": n_rows,
    }
    if sums["by_site"]:
        found["by_hook_point"] = {name: errors(n_rows, one) for name, one in zip(written, sums["by_site"], strict=True)}
    return found


def errors(n_rows: int, sums: dict[str, Any]) -> dict[str, float]:
    """How far y_hat is from y, from `error_sums` over `n_rows`:

    mse: mean squared residual norm. fvu: sum of squared residuals over sum of squared deviations from the mean;
    fvu_about_zero: over the sum of squares; fvu_by_row: mean over rows of ‖y - y_hat‖² / ‖y‖².
    relative_reconstruction_bias: E‖y_hat‖² / E[y·y_hat]. l2_ratio: mean of ‖y_hat‖ / ‖y‖. cossim: mean cosine of y and
    y_hat.
    """
    deviations = float(sums["squares"]) - float((sums["rows"] ** 2).sum()) / n_rows
    squared_error, products = float(sums["squared_error"]), float(sums["products"])
    return {
        "fvu": squared_error / deviations if deviations else math.nan,
        "fvu_about_zero": squared_error / float(sums["squares"]) if sums["squares"] else math.nan,
        "fvu_by_row": float(sums["error_ratios"]) / n_rows,
        "mse": squared_error / n_rows,
        "relative_reconstruction_bias": float(sums["y_hat_squares"]) / products if products else math.nan,
        "l2_ratio": float(sums["norm_ratios"]) / n_rows,
        "cossim": float(sums["cosines"]) / n_rows,
    }


def density_histogram(density: Float[np.ndarray, " d_sae"]) -> dict[str, Any]:
    """Counts of latents by the power of ten of their density; latents that never fired are counted apart."""
    fires = density[density > 0]
    counts, _ = np.histogram(np.log10(np.maximum(fires, 1e-7)), bins=DENSITY_EDGES)
    return {"log10_edges": list(DENSITY_EDGES), "counts": counts.tolist(), "never": int((density == 0).sum())}
