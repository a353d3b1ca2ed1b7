"""What people and programs say that latents are about."""

from typing import Any

from fastapi import APIRouter
from pydantic import Field, model_validator

from api.saes import TheExplanations, TheLibrary, TheTables
from sae_service.analysis import shown
from sae_service.jobs.records import Explanation
from sae_service.schema import Frozen, refuse_long

router = APIRouter(tags=["saes"])


class Explained(Frozen):
    """Explanations of latents of one SAE."""

    explanations: tuple[Explanation, ...] = Field(min_length=1, max_length=1000)

    @model_validator(mode="before")
    @classmethod
    def _check_lengths(cls, data: Any) -> Any:
        refuse_long(data)
        return data


class Stored(Frozen):
    """How many explanations were stored."""

    stored: int


@router.post("/saes/{sae_id}/explanations", status_code=201)
def add_explanations(
    sae_id: str, explained: Explained, library: TheLibrary, tables: TheTables, explanations: TheExplanations
) -> Stored:
    """Stores explanations of one latent or many. Each takes the place of the one by the same author of the same latent."""
    place = library.place(sae_id)
    table = tables.open(place)
    for index, one in enumerate(explained.explanations):
        shown.check(table, one.latent, f"/explanations/{index}/latent")
    explanations.put(*place.sae, explained.explanations)
    return Stored(stored=len(explained.explanations))
