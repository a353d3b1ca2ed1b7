"""Finished SAEs, and what the routes about their latents are given."""

from collections import OrderedDict
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from api.dependencies import Jobs
from api.jobs import Page, page
from sae_service.analysis.finished import Library, Place
from sae_service.analysis.records import SAE, SAEEntry
from sae_service.analysis.results import Table
from sae_service.errors import NotFound, UnknownCursor
from sae_service.jobs.explanations import Explanations
from sae_service.storage.objects import Storage

router = APIRouter(tags=["saes"])
KEPT = 8
"""Tables whose columns are remembered."""
After = Annotated[str | None, Query(description="The last id of the part before.")]


class Tables:
    """The tables that were read last: their files never change."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._opened: OrderedDict[str, Table] = OrderedDict()

    def open(self, place: Place) -> Table:
        """The table at a place."""
        table = self._opened.pop(place.key, None) or Table(self._storage, place.key)
        self._opened[place.key] = table
        while len(self._opened) > KEPT:
            self._opened.popitem(last=False)
        return table


async def _library(jobs: Jobs) -> Library:
    return Library(jobs)


async def _tables(request: Request) -> Tables:
    return request.app.state.tables


async def _explanations(request: Request) -> Explanations:
    return request.app.state.explanations


TheLibrary = Annotated[Library, Depends(_library)]
TheTables = Annotated[Tables, Depends(_tables)]
TheExplanations = Annotated[Explanations, Depends(_explanations)]


@router.get("/saes")
def list_saes(library: TheLibrary, limit: Annotated[int, Query(ge=1, le=100)] = 20, after: After = None) -> Page[SAEEntry]:
    """Every finished SAE, those of the newest jobs first."""
    try:
        return page(library.entries(limit + 1, after), limit)
    except NotFound:
        raise UnknownCursor(f"there is no SAE {after} to go on after", "after") from None


@router.get("/saes/{sae_id}")
def get_sae(sae_id: str, library: TheLibrary, tables: TheTables) -> SAE:
    """One finished SAE, and on what its latents were looked at."""
    found = library.get(sae_id)
    looked_at = tables.open(library.place(sae_id)).about if found.latents_job is not None else None
    d_sae = found.d_sae if looked_at is None else looked_at["d_sae"]
    return found.model_copy(update={"looked_at": looked_at, "d_sae": d_sae})
