"""A histogram of the activations of each latent, in one pass, though nobody knows its range before the end.

Bins are a power of two wide. When a larger activation comes, neighbouring bins are joined and all are twice as wide: the counts
are those that the final bins would have had from the beginning.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

N_BINS = 64
LOWEST = -126
"""The exponent of a latent that has not fired yet: the smallest one whose power is a normal float32."""


class Histogram:
    """Counts [d_sae, N_BINS] of activations above 0; bin i of a latent holds those in [i w, (i + 1) w), w = 2^exponent."""

    def __init__(self, d_sae: int) -> None:
        self.counts = np.zeros((d_sae, N_BINS), np.int32)
        self.exponents = np.full(d_sae, LOWEST, np.int32)

    def add(self, latents: Int[np.ndarray, " entries"], values: Float[np.ndarray, " entries"]) -> None:
        """Counts activations."""
        largest = np.zeros(len(self.exponents), np.float32)
        np.maximum.at(largest, latents, values)
        self._widen(largest)
        bins = np.ldexp(values, -self.exponents[latents]).astype(np.int64)
        flat = np.bincount(latents.astype(np.int64) * N_BINS + bins, minlength=self.counts.size)
        self.counts += flat.reshape(self.counts.shape).astype(np.int32)

    def _widen(self, largest: Float[np.ndarray, " d_sae"]) -> None:
        """Joins bins until the largest value of each latent has one."""
        needed = np.frexp(largest)[1] - (N_BINS.bit_length() - 1)
        needed = np.where(largest > 0, np.maximum(needed, LOWEST), LOWEST)
        is_fresh = ~self.counts.any(axis=1)
        self.exponents[is_fresh] = needed[is_fresh]
        while len(narrow := np.flatnonzero(self.exponents < needed)):
            halved = self.counts[narrow].reshape(-1, N_BINS // 2, 2).sum(axis=2)
            self.counts[narrow] = np.pad(halved, ((0, 0), (0, N_BINS // 2)))
            self.exponents[narrow] += 1

    @property
    def widths(self) -> Float[np.ndarray, " d_sae"]:
        """The width of each latent's bins; 0 for one that never fired."""
        return np.where(self.exponents > LOWEST, np.ldexp(np.float32(1), self.exponents), 0).astype(np.float32)

    def state(self) -> dict[str, np.ndarray]:
        """All that is remembered."""
        return {"counts": self.counts, "exponents": self.exponents}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Goes on from a state."""
        self.counts, self.exponents = state["counts"], state["exponents"]
