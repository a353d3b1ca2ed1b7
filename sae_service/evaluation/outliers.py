"""Rows that are far longer than the others, such as those of attention sinks: a few of them can decide an FVU."""

from itertools import pairwise

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sae_service.numerics import row_norms

FAR = 10
"""A row of more than so many times the median norm is an outlier."""


def norms_by_site(y: Float[Array, "rows d_write"], widths: tuple[int, ...]) -> Float[Array, "rows n_write"]:
    """The norm of each row at each hook point; hook points lie side by side in y."""
    return jnp.stack([row_norms(y[:, first:last]) for first, last in pairwise(np.cumsum((0, *widths)))], axis=1)


def figures(norms: Float[np.ndarray, "rows n_write"]) -> dict[str, float]:
    """How long the longest rows are, each where it is longest beside the median of its hook point:

    outlier_share: share of the rows of more than 10 times the median norm. max_norm_ratio: the longest over the median.
    """
    medians = np.maximum(np.median(norms, axis=0), np.finfo(np.float32).tiny)
    ratios = (norms / medians).max(axis=1)
    return {"outlier_share": float((ratios > FAR).mean()), "max_norm_ratio": float(ratios.max())}
