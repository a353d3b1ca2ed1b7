"""Histograms of bounded size for numbers of any size: a bin is a float32's exponent and the first bits of its mantissa.

So a bin is at most 1/128 of its numbers wide, whatever they are, and nothing has to be known of them beforehand.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

BITS = 7
"""Of the mantissa."""
LOWEST, OCTAVES = -32, 64
"""Magnitudes from 2^-32 to 2^32 have bins of their own; what is smaller is in the first bin, what is larger in the last."""
N_BINS = OCTAVES << BITS
_FIRST = (127 + LOWEST) << BITS


def _edges() -> Float[np.ndarray, " edges"]:
    bits = (np.arange(N_BINS + 1, dtype=np.uint32) + np.uint32(_FIRST)) << np.uint32(23 - BITS)
    edges = bits.view(np.float32).astype(np.float64)
    edges[0] = 0
    return edges


EDGES = _edges()
"""Where the bins of magnitudes begin, and where the last one ends."""
SIGNED_EDGES = np.concatenate([-EDGES[:0:-1], EDGES])
"""The same of numbers with a sign."""


def magnitudes(values: Float[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    """The bin of each value, its sign left out."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32) & np.uint32(0x7FFFFFFF)
    return np.clip((bits >> np.uint32(23 - BITS)).astype(np.int64) - _FIRST, 0, N_BINS - 1)


def signed(values: Float[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    """The bin of each value among twice as many, the most negative first."""
    found = magnitudes(values)
    return np.where(np.signbit(values), N_BINS - 1 - found, N_BINS + found)


def counted(places: Int[np.ndarray, "..."], n_bins: int) -> Int[np.ndarray, " bins"]:
    """How many values are in each bin."""
    return np.bincount(places.ravel(), minlength=n_bins).astype(np.int32)


def quantiles(
    counts: Int[np.ndarray, " bins"], edges: Float[np.ndarray, " edges"], shares: Sequence[float], lowest: float, highest: float
) -> list[float]:
    """The values below which these shares of all lie, as if the values of a bin were spread evenly over it.

    Args:
        lowest, highest: the smallest and the largest value, beyond which no quantile lies.
    """
    total = counts.sum()
    if not total:
        return [float("nan")] * len(shares)
    below = np.append(0, np.cumsum(counts, dtype=np.int64))
    # The outermost bins have whatever lies beyond.
    edges = np.concatenate([[min(edges[0], lowest)], edges[1:-1], [max(edges[-1], highest)]])
    found = list[float]()
    for share in shares:
        place = min(int(np.searchsorted(below, share * total, side="right")) - 1, len(counts) - 1)
        inside = (share * total - below[place]) / counts[place] if counts[place] else 0.0
        found.append(float(np.clip(edges[place] + inside * (edges[place + 1] - edges[place]), lowest, highest)))
    return found


def share_below(counts: Int[np.ndarray, " bins"], limit: float) -> float:
    """The share of values whose magnitude is below a limit; `counts` are those of `signed`."""
    both = counts[N_BINS:] + counts[N_BINS - 1 :: -1]
    place = int(np.searchsorted(EDGES, limit, side="right")) - 1
    if place >= N_BINS:
        return 1.0
    inside = (limit - EDGES[place]) / (EDGES[place + 1] - EDGES[place])
    return float((both[:place].sum() + inside * both[place]) / both.sum())
