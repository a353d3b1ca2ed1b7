"""Finished SAEs, and what their latents do."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from api.dependencies import Files, Jobs
from api.files import RESPONSES, Wanted, respond
from api.jobs import Page, page
from sae_service.analysis import shown
from sae_service.analysis.library import Library
from sae_service.analysis.library import Place as LatentsPlace
from sae_service.analysis.records import SAE, Latent, LatentEntry, Order, SAEEntry, Sort
from sae_service.analysis.results import COLUMNS, Table
from sae_service.errors import NotFound, UnknownCursor
from sae_service.storage.objects import Storage

router = APIRouter(tags=["saes"])
KEPT = 8
"""Tables whose columns are remembered."""
Share = Annotated[float, Query(ge=0, le=1)]
Number = Annotated[int, Path(ge=0, le=1 << 24, description="The latent, counted from 0.")]
After = Annotated[str | None, Query(description="The last id of the part before.")]


class Tables:
    """The tables that were read last: their files never change."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._opened: OrderedDict[str, Table] = OrderedDict()

    def open(self, place: LatentsPlace) -> Table:
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


TheLibrary = Annotated[Library, Depends(_library)]
TheTables = Annotated[Tables, Depends(_tables)]


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


@router.get("/saes/{sae_id}/latents")
def list_latents(
    sae_id: str,
    library: TheLibrary,
    tables: TheTables,
    sort: Annotated[Sort, Query(description="largest and mean are of the activations.")] = "latent",
    order: Order = "asc",
    token: Annotated[str | None, Query(description="Only latents that fire most on this token in one of their passages.")] = None,
    raises: Annotated[str | None, Query(description="Only latents with this token among those that they raise most.")] = None,
    min_density: Share = 0,
    max_density: Share = 1,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[int | None, Query(ge=0, description="The last id of the part before.")] = None,
) -> Page[LatentEntry]:
    """The latents of an SAE, sorted, searched by token, filtered by density."""
    table = tables.open(library.place(sae_id))
    wanted = shown.Wanted(sort, order, token, raises, min_density, max_density)
    try:
        found = shown.after(shown.chosen(table, wanted), after, limit + 1)
    except NotFound as error:
        raise UnknownCursor(f"{error.message} to go on after", "after") from None
    return page(shown.entries(table, np.asarray(found), {}), limit)


FILE = "/saes/{sae_id}/latents/file"


@router.head(FILE, include_in_schema=False)
@router.get(FILE, response_class=StreamingResponse, responses=RESPONSES)
def download_latents(
    request: Request, sae_id: str, library: TheLibrary, storage: Files, wanted: Wanted
) -> Response:
    """All columns of an SAE's latents, as one file in the format of safetensors.

    Its ETag is the SHA-256 of its content; a single byte range may be asked for, such as that of the rows of some latents.
    """
    place = library.place(sae_id)
    path = f"{place.folder}/{COLUMNS}"
    entry = next((entry for entry in place.checkpoint.files if entry.path == path), None)
    if entry is None:
        raise NotFound(f"checkpoint {place.checkpoint.id} has no file {path}")
    key = f"{place.checkpoint.key}/{path}"

    def read(start: int, end: int) -> Iterator[bytes]:
        storage.size(key)
        return storage.stream(key, start, end)

    return respond(request, entry, wanted, read, "private, no-cache")


@router.get("/saes/{sae_id}/latents/{latent}")
def get_latent(sae_id: str, latent: Number, library: TheLibrary, tables: TheTables) -> Latent:
    """One latent: its passages with an activation for each token, its histograms, the tokens that it raises, its neighbours."""
    return shown.latent(tables.open(library.place(sae_id)), latent)
