"""Norms of the rows of a hook point: by position, their distribution, and those of tokens of a special kind."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int

from sae_service.analysis.statistics import bins

SHARES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
"""The quantiles that are told."""


def norms_of(rows: Float[np.ndarray, "prompts positions d_in"]) -> Float[np.ndarray, "prompts positions"]:
    """The norm of each row, in float64."""
    return np.sqrt(np.einsum("pcd,pcd->pc", rows, rows, dtype=np.float64))


def group_starts(context_size: int) -> list[int]:
    """Where groups of positions begin, each about a third longer than the one before: 0, 1, 2, 3, 4, 6, 8, 12, 16, ..."""
    starts = [0, 1, 2, 3]
    while starts[-1] < context_size:
        starts.append(starts[-2] * 2)
    return [start for start in starts if start < context_size]


@dataclass
class NormTally:
    """The norms of the rows of a hook point so far.

    Attributes:
        starts: where groups of positions begin whose norms have a histogram of their own.
        tokens: those that are watched, whether their rows count or not; all other figures are of rows that count.
        watched: how many rows of each there are, the sum of their norms, and the largest.
    """

    context_size: int
    starts: list[int]
    tokens: tuple[int, ...]
    counts: Int[np.ndarray, " positions"] = field(init=False)
    sums: Float[np.ndarray, " positions"] = field(init=False)
    squares: Float[np.ndarray, " positions"] = field(init=False)
    histogram: Int[np.ndarray, "groups bins"] = field(init=False)
    extremes: Float[np.ndarray, " 2"] = field(init=False)
    watched: Float[np.ndarray, "3 tokens"] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros(self.context_size, np.int64)
        self.sums, self.squares = np.zeros(self.context_size), np.zeros(self.context_size)
        self.histogram = np.zeros((len(self.starts), bins.N_BINS), np.int32)
        self.extremes = np.array([np.inf, -np.inf])
        self.watched = np.zeros((3, len(self.tokens)))

    def add(
        self, norms: Float[np.ndarray, "prompts positions"], keep: Bool[np.ndarray, "prompts positions"],
        tokens: Int[np.ndarray, "prompts positions"], is_finite: Bool[np.ndarray, "prompts positions"],
    ) -> None:  # fmt: skip
        """Counts the rows of a batch, those that are no numbers left out."""
        for index, token in enumerate(self.tokens):
            found = norms[(tokens == token) & is_finite]
            if len(found):
                self.watched[:2, index] += len(found), found.sum()
                self.watched[2, index] = max(self.watched[2, index], found.max())
        keep = keep & is_finite
        if not keep.any():
            return
        kept = np.where(keep, norms, 0)
        self.counts += keep.sum(axis=0)
        self.sums += kept.sum(axis=0)
        self.squares += (kept * kept).sum(axis=0)
        self.extremes = np.array([min(self.extremes[0], norms[keep].min()), max(self.extremes[1], norms[keep].max())])
        for counts, first, end in zip(self.histogram, self.starts, [*self.starts[1:], self.context_size], strict=True):
            part = slice(first, end)
            counts += bins.counted(bins.magnitudes(norms[:, part][keep[:, part]]), bins.N_BINS)

    @property
    def n(self) -> int:
        """Rows that count."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """The mean norm."""
        return float(self.sums.sum() / max(self.n, 1))

    @property
    def mean_square(self) -> float:
        """The mean squared norm."""
        return float(self.squares.sum() / max(self.n, 1))

    def quantiles(self, shares: Sequence[float] = SHARES, group: int | None = None) -> list[float]:
        """Quantiles of the norms at all positions, or at those of a group."""
        counts = self.histogram.sum(axis=0) if group is None else self.histogram[group]
        return bins.quantiles(counts, bins.EDGES, shares, *self.extremes)

    def share_beyond(self, norm: float) -> float:
        """The share of rows that are longer, to within the width of a bin."""
        counts = self.histogram.sum(axis=0)
        return float(counts[bins.EDGES[:-1] >= norm].sum() / max(counts.sum(), 1))

    def state(self) -> dict[str, np.ndarray]:
        """What is remembered."""
        return {name: getattr(self, name) for name in PARTS}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Goes on from a state."""
        for name in PARTS:
            setattr(self, name, state[name])


PARTS = ("counts", "sums", "squares", "histogram", "extremes", "watched")
