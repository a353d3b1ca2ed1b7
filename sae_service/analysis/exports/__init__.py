"""Latents in the forms that other programs read: each module has `pieces`, the text of a file piece by piece."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from sae_service.analysis.exports import neuronpedia, prompts, saedashboard
from sae_service.analysis.records import ExportFormat as ExportFormat
from sae_service.analysis.records import Latent

EXPORTS: dict[str, Callable[[Mapping[str, Any], Iterable[Latent]], Iterator[str]]] = {
    "neuronpedia": neuronpedia.pieces,
    "saedashboard": saedashboard.pieces,
    "prompts": prompts.pieces,
}
"""What writes latents, given what `latents.json` says of them."""
