"""Central moments of each dimension, batch by batch in float64, without the sums of powers that cancel.

Source: Pébay 2008, "Formulas for robust, one-pass parallel computation of covariances and arbitrary-order statistical moments",
SAND2008-6212, equations 2.1 to 3.1.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Row = Float[np.ndarray, " d"]


@dataclass(frozen=True)
class Moments:
    """How many rows there are, their mean, and the sums of the second to fourth powers of the deviations from it."""

    n: int
    mean: Row
    m2: Row
    m3: Row
    m4: Row

    @staticmethod
    def none(d: int) -> "Moments":
        """Those of no rows."""
        return Moments(0, *(np.zeros(d) for _ in range(4)))

    @staticmethod
    def of(rows: Float[np.ndarray, "rows d"]) -> "Moments":
        """Those of some rows."""
        if not len(rows):
            return Moments.none(rows.shape[1])
        exact = rows.astype(np.float64)
        mean = exact.mean(axis=0)
        deviation = exact - mean
        square = deviation * deviation
        return Moments(len(rows), mean, square.sum(0), (square * deviation).sum(0), (square * square).sum(0))

    def __add__(self, other: "Moments") -> "Moments":
        """Those of both."""
        if not self.n or not other.n:
            return self if self.n else other
        a, b = float(self.n), float(other.n)
        n, delta = a + b, other.mean - self.mean
        m2 = self.m2 + other.m2 + delta**2 * a * b / n
        m3 = self.m3 + other.m3 + delta**3 * a * b * (a - b) / n**2 + 3 * delta * (a * other.m2 - b * self.m2) / n
        m4 = (
            self.m4 + other.m4 + delta**4 * a * b * (a * a - a * b + b * b) / n**3
            + 6 * delta**2 * (a * a * other.m2 + b * b * self.m2) / n**2 + 4 * delta * (a * other.m3 - b * self.m3) / n
        )  # fmt: skip
        return Moments(self.n + other.n, self.mean + delta * b / n, m2, m3, m4)

    def pooled(self) -> "Moments":
        """Those of the numbers of all dimensions, as if they were of one."""
        mean = self.mean.mean()
        delta, n = self.mean - mean, self.n
        sums = (
            (self.m2 + n * delta**2).sum(),
            (self.m3 + 3 * delta * self.m2 + n * delta**3).sum(),
            (self.m4 + 4 * delta * self.m3 + 6 * delta**2 * self.m2 + n * delta**4).sum(),
        )
        return Moments(n * len(self.mean), np.array([mean]), *(np.array([value]) for value in sums))

    @property
    def variance(self) -> Row:
        """The mean squared deviation."""
        return self.m2 / max(self.n, 1)

    @property
    def skewness(self) -> Row:
        """The mean third power of the deviation over that of the standard deviation; 0 where nothing varies."""
        return _ratio(self.m3 / max(self.n, 1), self.variance**1.5)

    @property
    def kurtosis(self) -> Row:
        """The mean fourth power of the deviation over the square of the variance (normal: 3); 0 where nothing varies."""
        return _ratio(self.m4 / max(self.n, 1), self.variance**2)

    def arrays(self) -> Float[np.ndarray, "4 d"]:
        """All but the number of rows."""
        return np.stack([self.mean, self.m2, self.m3, self.m4])


def _ratio(values: Row, by: Row) -> Row:
    return np.divide(values, by, out=np.zeros_like(values), where=by > 0)
