"""What a program asks of the service about finished SAEs and their latents. Pure HTTP; imports neither torch nor jax."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from sae_service.analysis.records import SAE, ExportFormat, Latent, LatentEntry, Order, SAEEntry, Sort
from sae_service.answers import Answers
from sae_service.errors import NotFound

AT_ONCE = 500
"""Explanations in one request."""


class LatentsCalls(ABC):
    """The part of a client that is about SAEs."""

    _answers: Answers

    @abstractmethod
    def _ask(self, method: str, path: str, **arguments: Any) -> Any:
        """The content of an answer."""

    @abstractmethod
    def _pages(self, path: str, query: dict[str, Any]) -> Iterator[Any]:
        """Every item of a list."""

    @abstractmethod
    def _fetch(self, url: str, sha256: str | None, target: Path) -> None:
        """Writes a file."""

    def saes(self, limit: int | None = None) -> Iterator[SAEEntry]:
        """The finished SAEs, those of the newest jobs first: all of them, or the first `limit`."""
        found = islice(self._pages("/v1/saes", {"limit": min(limit or 100, 100)}), limit)
        return (self._answers.record(SAEEntry, item) for item in found)

    def sae(self, sae_id: str) -> SAE:
        """One finished SAE. Its id is that of its job, a point, and its name."""
        return self._answers.record(SAE, self._ask("GET", _path(sae_id)))

    def latents(
        self, sae_id: str, sort: Sort = "latent", order: Order = "asc", token: str | None = None, raises: str | None = None,
        min_density: float = 0.0, max_density: float = 1.0, explanation: str | None = None, limit: int | None = None,
    ) -> Iterator[LatentEntry]:  # fmt: skip
        """The latents of an SAE: all of them, or the first `limit`.

        Args:
            token: only those that are strongest on this token in one of their strongest passages.
            raises: only those that raise the logit of this token most.
            explanation: only those with these words in an explanation.
        """
        asked = {
            "sort": sort, "order": order, "token": token, "raises": raises, "min_density": min_density, "max_density": max_density,
            "explanation": explanation, "limit": min(limit or 100, 100),
        }  # fmt: skip
        query = {name: value for name, value in asked.items() if value is not None}
        found = islice(self._pages(f"{_path(sae_id)}/latents", query), limit)
        return (self._answers.record(LatentEntry, item) for item in found)

    def latent(self, sae_id: str, latent: int) -> Latent:
        """All that is known of one latent."""
        return self._answers.record(Latent, self._ask("GET", f"{_path(sae_id)}/latents/{latent}"))

    def explain(self, sae_id: str, explanations: Iterable[dict[str, Any]]) -> int:
        """Stores explanations: each with a latent and a text, and maybe an author and a score. Returns how many."""
        n_stored, left = 0, iter(explanations)
        while part := list(islice(left, AT_ONCE)):
            answer = self._ask("POST", f"{_path(sae_id)}/explanations", json={"explanations": part})
            n_stored += int(self._answers.part(answer, "stored"))
        return n_stored

    def export_latents(
        self, sae_id: str, path: Path | str, format: ExportFormat, first: int = 0, last: int | None = None
    ) -> Path:
        """Writes latents, from the first to the last, in the form that another program reads. Returns the path.

        Args:
            format: neuronpedia, saedashboard, or prompts for an explainer, one JSON line each.
        """
        query = {"format": format, "first": first} | ({} if last is None else {"last": last})
        self._fetch(f"{_path(sae_id)}/latents/export?{urlencode(query)}", None, Path(path))
        return Path(path)

    def download_latents(self, sae_id: str, path: Path | str) -> Path:
        """Writes the columns of an SAE's latents, a file in the format of safetensors. Returns its path."""
        self._fetch(f"{_path(sae_id)}/latents/file", None, Path(path))
        return Path(path)


def _path(sae_id: str) -> str:
    """Where an SAE is. Raises NotFound for what can be no id."""
    if not sae_id or "/" in sae_id or sae_id in (".", ".."):
        raise NotFound(f"{sae_id!r} is no SAE: its id is that of its job, a point, and its name")
    return f"/v1/saes/{quote(sae_id, safe='')}"
