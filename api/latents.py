"""What the latents of finished SAEs do."""

from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from api.dependencies import Files
from api.files import RESPONSES, Wanted, respond
from api.jobs import Page, page
from api.saes import TheExplanations, TheLibrary, TheTables
from sae_service.analysis import shown
from sae_service.analysis.exports import EXPORTS, ExportFormat
from sae_service.analysis.records import Latent, LatentEntry, Order, Sort
from sae_service.analysis.results import COLUMNS
from sae_service.errors import NotFound, UnknownCursor

router = APIRouter(tags=["saes"])
Share = Annotated[float, Query(ge=0, le=1)]
Number = Annotated[int, Path(ge=0, le=1 << 24, description="The latent, counted from 0.")]


@router.get("/saes/{sae_id}/latents")
def list_latents(
    sae_id: str,
    library: TheLibrary,
    tables: TheTables,
    explanations: TheExplanations,
    sort: Annotated[Sort, Query(description="largest and mean are of the activations.")] = "latent",
    order: Order = "asc",
    token: Annotated[str | None, Query(description="Only latents that fire most on this token in one of their passages.")] = None,
    raises: Annotated[str | None, Query(description="Only latents with this token among those that they raise most.")] = None,
    min_density: Share = 0,
    max_density: Share = 1,
    explanation: Annotated[str | None, Query(min_length=1, description="Only latents with these words in an explanation.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[int | None, Query(ge=0, description="The last id of the part before.")] = None,
) -> Page[LatentEntry]:
    """The latents of an SAE, sorted, searched by token or explanation, filtered by density."""
    place = library.place(sae_id)
    table = tables.open(place)
    among = None if explanation is None else explanations.matching(*place.sae, explanation)
    wanted = shown.Wanted(sort, order, token, raises, min_density, max_density)
    try:
        found = shown.after(shown.chosen(table, wanted, among), after, limit + 1)
    except NotFound as error:
        raise UnknownCursor(f"{error.message} to go on after", "after") from None
    explained = explanations.of(*place.sae, found.tolist())
    return page(shown.entries(table, found, {latent: those[0].text for latent, those in explained.items()}), limit)


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


@router.get("/saes/{sae_id}/latents/export", response_class=StreamingResponse)
def export_latents(
    sae_id: str, library: TheLibrary, tables: TheTables,
    format: Annotated[ExportFormat, Query(description="Who is to read it; prompts are for an explainer, as JSON lines.")],
    first: Annotated[int, Query(ge=0, le=1 << 24, description="The first latent.")] = 0,
    last: Annotated[int | None, Query(ge=0, le=1 << 24, description="The last latent; left out, all from the first on.")] = None,
) -> StreamingResponse:  # fmt: skip
    """Some latents, or all, in the form that another program reads."""
    table = tables.open(library.place(sae_id))
    end = table.n_latents - 1 if last is None else last
    for latent, param in ((first, "first"), (end, "last")):
        shown.check(table, latent, param)
    latents = (shown.latent(table, latent) for latent in range(first, end + 1))
    kind = "application/x-ndjson" if format == "prompts" else "application/json"
    return StreamingResponse(EXPORTS[format](table.about, latents), media_type=kind)


@router.get("/saes/{sae_id}/latents/{latent}")
def get_latent(
    sae_id: str, latent: Number, library: TheLibrary, tables: TheTables, explanations: TheExplanations
) -> Latent:
    """One latent: its passages with an activation for each token, its histograms, the tokens that it raises, its neighbours."""
    place = library.place(sae_id)
    return shown.latent(tables.open(place), latent, explanations.of(*place.sae, [latent]).get(latent, ()))
