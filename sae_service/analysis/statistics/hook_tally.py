"""The distribution of the rows of a hook point."""

from collections import Counter

import numpy as np
from jaxtyping import Bool, Float, Int

from sae_service.analysis.statistics import bins
from sae_service.analysis.statistics.moments import Moments

Mask = Bool[np.ndarray, "prompts positions"]


class HookTally:
    """What has been seen of the rows of a hook point that count, and of the size of all.

    Attributes:
        values: how many numbers are in each bin of `bins.signed`.
        extremes: the smallest and the largest number of rows that count, and the largest magnitude of all rows.
        not_finite: how many rows are no numbers (NaN or infinite), which are in no other figure.
        outliers: rows that count and are longer than a limit, by position.
        outlier_tokens: the same by token.
        outlier_square: the sum of the squared norms of these rows.
    """

    def __init__(self, d_in: int, context_size: int, limit: float) -> None:
        """None yet.

        Args:
            limit: the norm beyond which a row is an outlier.
        """
        self.limit, self.moments = limit, Moments.none(d_in)
        self.values, self.extremes = np.zeros(2 * bins.N_BINS, np.int64), np.array([np.inf, -np.inf, 0.0])
        self.not_finite, self.outliers = np.zeros(1, np.int64), np.zeros(context_size, np.int64)
        self.outlier_tokens, self.outlier_square = Counter[int](), np.zeros(1)

    def add(
        self, rows: Float[np.ndarray, "prompts positions d_in"], norms: Float[np.ndarray, "prompts positions"], keep: Mask,
        tokens: Int[np.ndarray, "prompts positions"], is_finite: Mask,
    ) -> None:  # fmt: skip
        """Counts the rows of a batch."""
        self.not_finite += int((~is_finite).sum())
        if is_finite.any():
            self.extremes[2] = max(self.extremes[2], np.abs(rows[is_finite]).max())
        keep = keep & is_finite
        kept = rows[keep]
        if not len(kept):
            return
        self.extremes[:2] = min(self.extremes[0], kept.min()), max(self.extremes[1], kept.max())
        self.moments = self.moments + Moments.of(kept)
        self.values += bins.counted(bins.signed(kept), 2 * bins.N_BINS)
        is_outlier = keep & (norms > self.limit)
        self.outliers += is_outlier.sum(axis=0)
        self.outlier_tokens.update(tokens[is_outlier].tolist())
        self.outlier_square += np.square(norms[is_outlier]).sum()

    def state(self) -> dict[str, np.ndarray]:
        """What is remembered."""
        tokens = np.array(sorted(self.outlier_tokens.items()), np.int64).reshape(-1, 2)
        own = {name: getattr(self, name) for name in PARTS}
        return own | {"n": np.array([self.moments.n]), "moments": self.moments.arrays(), "outlier_tokens": tokens}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Goes on from a state."""
        for name in PARTS:
            setattr(self, name, state[name])
        self.moments = Moments(int(state["n"][0]), *state["moments"])
        self.outlier_tokens = Counter({int(token): int(count) for token, count in state["outlier_tokens"]})


PARTS = ("values", "extremes", "not_finite", "outliers", "outlier_square")
