"""For each latent the passages that come first in an order: a running best of bounded size.

What is kept depends on the order alone, not on how the text came in batches: it is the same after a resumption.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from sae_service.analysis.firing import Pairs, joined, no_pairs

LEAST_WAITING = 1 << 18
"""So many pairs may wait, however few are kept: to sort them in costs about as much as to sort all that are kept."""


class Kept:
    """The `n` pairs of each latent with the highest priority; of equal ones, those of earlier passages."""

    def __init__(self, d_sae: int, n: int) -> None:
        self._d_sae, self._n = d_sae, n
        self._pairs, self._priorities = no_pairs(), np.zeros(0, np.float32)
        self._waiting = list[tuple[Pairs, np.ndarray]]()
        self._n_waiting = 0
        self._least = np.full(d_sae, -np.inf, np.float32)

    def add(self, pairs: Pairs, priorities: Float[np.ndarray, " pairs"]) -> None:
        """Counts pairs of passages that come after all that were added before."""
        chosen = np.flatnonzero(priorities > self._least[pairs.latents])
        if not len(chosen):
            return
        self._waiting.append((pairs.take(chosen), priorities[chosen]))
        self._n_waiting += len(chosen)
        if self._n_waiting > max(len(self._pairs), LEAST_WAITING):
            self.settle()

    def settle(self) -> Pairs:
        """All that are kept, by latent, those of each latent by priority."""
        if self._waiting:
            pairs = joined([self._pairs, *(part for part, _ in self._waiting)])
            priorities = np.concatenate([self._priorities, *(part for _, part in self._waiting)])
            order = np.lexsort((pairs.passages, -priorities, pairs.latents))
            ranks = ranks_of(pairs.latents[order])
            chosen = order[ranks < self._n]
            self._pairs, self._priorities = pairs.take(chosen), priorities[chosen]
            self._waiting, self._n_waiting = [], 0
            self._limit()
        return self._pairs

    def _limit(self) -> None:
        """Notes what a pair must exceed to come among those of its latent."""
        last = np.flatnonzero(ranks_of(self._pairs.latents) == self._n - 1)
        self._least[self._pairs.latents[last]] = self._priorities[last]

    def state(self) -> dict[str, np.ndarray]:
        """All that is remembered."""
        return {name: getattr(self.settle(), name) for name in Pairs.__dataclass_fields__} | {"priorities": self._priorities}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Goes on from a state."""
        self._pairs = Pairs(*(state[name] for name in Pairs.__dataclass_fields__))
        self._priorities = state["priorities"]
        self._limit()

    def passages(self) -> Int[np.ndarray, " passages"]:
        """The numbers of all passages that may be wanted, ascending."""
        return np.unique(np.concatenate([self._pairs.passages, *(part.passages for part, _ in self._waiting)]))


def ranks_of(groups: Int[np.ndarray, " items"]) -> Int[np.ndarray, " items"]:
    """The place of each item among those of its group, from 0; items of one group follow one another."""
    is_first = np.ones(len(groups), bool)
    is_first[1:] = groups[1:] != groups[:-1]
    firsts = np.flatnonzero(is_first)
    return np.arange(len(groups)) - np.repeat(firsts, np.diff(np.append(firsts, len(groups))))


def drawn(seed: int, latents: Int[np.ndarray, " pairs"], passages: Int[np.ndarray, " pairs"]) -> Float[np.ndarray, " pairs"]:
    """A number in [0, 1) for each pair, a function of the seed, the latent and the passage's number alone.

    Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators" (the mixing of SplitMix64).
    """
    word = np.uint64(seed) ^ (latents.astype(np.uint64) << np.uint64(32)) ^ passages.astype(np.uint64)
    word = word + np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    word = word ^ (word >> np.uint64(31))
    return ((word >> np.uint64(40)).astype(np.float32)) / np.float32(1 << 24)
