"""What a program asks of the service about jobs on prompts. Pure HTTP; imports neither torch nor jax."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sae_service.analysis.attribution.records import Attribution
from sae_service.analysis.steering.records import Steering
from sae_service.answers import Answers
from sae_service.errors import NotFound


class PromptedCalls(ABC):
    """The part of a client that is about jobs that steer a model, or attribute what it says."""

    _answers: Answers

    @abstractmethod
    def _ask(self, method: str, path: str, **arguments: Any) -> Any:
        """The content of an answer."""

    @abstractmethod
    def _fetch(self, url: str, sha256: str | None, target: Path) -> None:
        """Writes a file."""

    def steering(self, job_id: str) -> Steering:
        """What steering does to a model, as a finished job has seen it."""
        return self._answers.record(Steering, self._ask("GET", _path(job_id, "steering")))

    def download_steering(self, job_id: str, path: Path | str) -> Path:
        """Writes the figures of each prompt at each coefficient, a file in the format of safetensors. Returns its path."""
        self._fetch(f"{_path(job_id, 'steering')}/file", None, Path(path))
        return Path(path)

    def attribution(self, job_id: str) -> Attribution:
        """What latents contribute to differences of logits, as a finished job has found it."""
        return self._answers.record(Attribution, self._ask("GET", _path(job_id, "attribution")))


def _path(job_id: str, of: str) -> str:
    """Where the results of a job are. Raises NotFound for what can be no id."""
    if not job_id or "/" in job_id or job_id in (".", ".."):
        raise NotFound(f"{job_id!r} is no job")
    return f"/v1/jobs/{quote(job_id, safe='')}/{of}"
