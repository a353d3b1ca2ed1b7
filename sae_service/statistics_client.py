"""What a program asks of the service about a model's activations. Pure HTTP; imports neither torch nor jax."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sae_service.analysis.statistics.records import Statistics
from sae_service.answers import Answers
from sae_service.errors import NotFound


class StatisticsCalls(ABC):
    """The part of a client that is about jobs that measure a model."""

    _answers: Answers

    @abstractmethod
    def _ask(self, method: str, path: str, **arguments: Any) -> Any:
        """The content of an answer."""

    @abstractmethod
    def _fetch(self, url: str, sha256: str | None, target: Path) -> None:
        """Writes a file."""

    def statistics(self, job_id: str) -> Statistics:
        """What a model's activations are like, as a finished job has measured it."""
        return self._answers.record(Statistics, self._ask("GET", _path(job_id)))

    def download_statistics(self, job_id: str, path: Path | str) -> Path:
        """Writes the figures by position, dimension and head, a file in the format of safetensors. Returns its path."""
        self._fetch(f"{_path(job_id)}/file", None, Path(path))
        return Path(path)


def _path(job_id: str) -> str:
    """Where the statistics of a job are. Raises NotFound for what can be no id."""
    if not job_id or "/" in job_id or job_id in (".", ".."):
        raise NotFound(f"{job_id!r} is no job")
    return f"/v1/jobs/{quote(job_id, safe='')}/statistics"
