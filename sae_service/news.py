"""What is to be said of a job while it runs, and to whom."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from sae_service.errors import Stopped


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint: each SAE's files are below `saes/<name>/`. Metrics and score are held-out ones, if there are.

    Attributes:
        written_s: how long its files took to be written.
    """

    key: str
    step: int
    tokens: int
    is_final: bool
    files: list[dict[str, str | int]]
    metrics: dict[str, Any]
    score: float | None
    written_s: float


def ends_here(should_stop: Callable[[], bool], alive: Callable[[], None]) -> bool:
    """Whether to stop; a sign of life first."""
    alive()
    return should_stop()


def stop_if_asked(should_stop: Callable[[], bool], alive: Callable[[], None]) -> None:
    """A sign of life; raises Stopped if it is time to stop."""
    if ends_here(should_stop, alive):
        raise Stopped


class Reporter(Protocol):
    """Where a job's news goes. A checkpoint may come from another thread than the rest."""

    def event(self, level: str, message: str) -> None:
        """Something happened that a user may want to read: level info, warning or error."""
        ...

    def metrics(self, rows: list[dict[str, Any]]) -> None:
        """One row of training metrics for each SAE."""
        ...

    def checkpoint(self, written: Checkpoint) -> None:
        """A checkpoint is on storage, complete."""
        ...
