"""Where an SAE reads and writes: what makes it an autoencoder, a transcoder or a crosscoder."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sae_service.errors import InvalidSpec

Widths = tuple[tuple[str, int], ...]
"""Hook points and the widths of their rows, in the order in which these lie side by side."""


@dataclass(frozen=True)
class Sites:
    """Where an SAE reads and where it writes.

    An autoencoder writes what it reads, at one hook point, or at several whose rows lie side by side (a crosscoder). A
    transcoder reads one hook point and writes another.
    """

    read: Widths
    write: Widths

    @property
    def d_read(self) -> int:
        """Width of the rows that are read."""
        return sum(width for _, width in self.read)

    @property
    def d_write(self) -> int:
        """Width of the rows that are written."""
        return sum(width for _, width in self.write)

    @property
    def reads(self) -> tuple[str, ...]:
        """The hook points that are read."""
        return tuple(name for name, _ in self.read)

    @property
    def writes(self) -> tuple[str, ...]:
        """The hook points that are written."""
        return tuple(name for name, _ in self.write)

    @property
    def is_autoencoder(self) -> bool:
        """Whether what is written is what is read."""
        return self.read == self.write

    @property
    def hook_names(self) -> tuple[str, ...]:
        """All its hook points, each once, those that are read first."""
        return tuple(dict.fromkeys((*self.reads, *self.writes)))


def at(hook_name: str, width: int) -> Sites:
    """The sites of an SAE of one hook point."""
    return Sites(((hook_name, width),), ((hook_name, width),))


def check_width(verb: str, width: int, hook_name: str, found: int) -> None:
    """Raises InvalidSpec if an SAE reads or writes (`verb`) rows of another width than those of a hook point."""
    if width != found:
        raise InvalidSpec(f"the SAE {verb} rows of {width} numbers, and those of {hook_name} have {found}")


def columns(widths: Widths, scales: Mapping[str, float]) -> np.ndarray:
    """One scale for each column of rows that lie side by side."""
    return np.concatenate([np.full(width, scales[name], np.float32) for name, width in widths])
