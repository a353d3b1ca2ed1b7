"""Passages as dashboards group them: the strongest ones, then those of each tenth with its range of activations."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from sae_service.analysis.records import Bins, Latent, Passage


@dataclass(frozen=True)
class Group:
    """Passages that belong together.

    Attributes:
        tenth: None for the strongest ones.
    """

    tenth: int | None
    passages: tuple[Passage, ...]

    @property
    def lowest(self) -> float:
        """The smallest of the largest activations."""
        return min(one.largest for one in self.passages)

    @property
    def highest(self) -> float:
        """The largest activation."""
        return max(one.largest for one in self.passages)


def groups(latent: Latent) -> list[Group]:
    """The groups of a latent's passages, in their order."""
    return [Group(tenth, tuple(found)) for tenth, found in groupby(latent.passages, key=lambda one: one.quantile)]


def centres(bins: Bins | None) -> list[float]:
    """The centre of each bin."""
    return [] if bins is None else [round(bins.start + (index + 0.5) * bins.width, 6) for index in range(len(bins.counts))]


def heights(bins: Bins | None) -> list[int]:
    """The count of each bin."""
    return [] if bins is None else list(bins.counts)


def rounded(values: Iterable[float]) -> list[float]:
    """Numbers with as many places as a dashboard shows."""
    return [round(value, 3) for value in values]
