"""Rows that are far longer than the others, such as those of attention sinks: a few of them can decide an FVU."""

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sae_service.numerics import row_norms

FAR = 10
"""A row of more than so many times the median norm is an outlier."""


def norm_ratios(
    y: Float[Array, "rows d_write"], widths: tuple[int, ...], medians: Float[Array, " n_write"]
) -> Float[Array, " rows"]:
    """The norm of each row over the median, at the hook point where it is the largest; hook points lie side by side in y."""
    norms = [row_norms(y[:, first:last]) for first, last in pairwise(np.cumsum((0, *widths)))]
    return jnp.max(jnp.stack(norms, axis=1) / jnp.maximum(medians, jnp.finfo(jnp.float32).tiny), axis=1)


def seen(ratios: Float[Array, " rows"], weights: Float[Array, " rows"]) -> dict[str, Array]:
    """What `Seen` adds up, of the rows of weight 1."""
    counts = weights > 0
    return {"n_rows": jnp.sum(counts), "n_far": jnp.sum(counts & (ratios > FAR)), "largest": jnp.max(jnp.where(counts, ratios, 0))}


class Seen:
    """The long rows of a whole evaluation, those beyond the limit too.

    Attributes:
        medians: the median norm at each hook point that is written.
        limit: a row of more than so many times the median is left out of other figures.
    """

    def __init__(self, medians: Float[Array, " n_write"], limit: Float[Array, ""]) -> None:
        self.medians, self.limit = medians, limit
        self._n_rows, self._n_far, self._largest = 0, 0, 0.0

    def add(self, found: dict[str, Array]) -> None:
        """Counts one batch."""
        one: Any = jax.device_get(found)
        self._n_rows += int(one["n_rows"])
        self._n_far += int(one["n_far"])
        self._largest = max(self._largest, float(one["largest"]))

    def figures(self) -> dict[str, float]:
        """outlier_share: share of the rows of more than 10 times the median norm. max_norm_ratio: the longest over the median."""
        return {"outlier_share": self._n_far / self._n_rows, "max_norm_ratio": self._largest}
