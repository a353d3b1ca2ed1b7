"""A reporter for tests."""

from typing import Any

from sae_service import pipeline


class Recorder:
    """Keeps what a job reports."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.rows: list[dict[str, Any]] = []
        self.checkpoints: list[pipeline.Checkpoint] = []

    def event(self, level: str, message: str) -> None:
        self.events.append((level, message))

    def metrics(self, rows: list[dict[str, Any]]) -> None:
        self.rows.extend(rows)

    def checkpoint(self, written: pipeline.Checkpoint) -> None:
        self.checkpoints.append(written)
