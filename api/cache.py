"""The activation cache: the streams of rows in it, and their deletion."""

from typing import Annotated

from fastapi import APIRouter, Query

from api.dependencies import Cache, TheCaller, TheSettings
from api.jobs import Page, page
from sae_service.errors import NotFound, UnknownCursor
from sae_service.storage.cache import ActivationCache
from sae_service.storage.cached_stream import CachedStream

router = APIRouter(tags=["cache"])


@router.get("/cache")
def list_cached_streams(
    cache: Cache,
    caller: TheCaller,
    settings: TheSettings,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(description="The last id of the part before.")] = None,
) -> Page[CachedStream]:
    """The streams whose rows are in the activation cache, newest first. Where keys have projects, those of the key's own."""
    found = _visible(cache, caller.project if settings.projects else None)
    ids = [stream.id for stream in found]
    if after is not None and after not in ids:
        raise UnknownCursor(f"there is no cached stream {after} to go on after", "after")
    return page(found if after is None else found[ids.index(after) + 1 :], limit)


@router.delete("/cache/{stream_id}", status_code=204)
def delete_cached_stream(stream_id: str, cache: Cache, caller: TheCaller, settings: TheSettings) -> None:
    """Deletes the rows of a stream. A job that reads them goes on with the model."""
    if stream_id not in [stream.id for stream in _visible(cache, caller.project if settings.projects else None)]:
        raise NotFound(f"there is no cached stream {stream_id}")
    cache.delete(stream_id)


def _visible(cache: ActivationCache, project: str | None) -> list[CachedStream]:
    """Those of a project, or all, newest first."""
    found = [stream for stream in cache.streams() if project is None or stream.project == project]
    return sorted(found, key=lambda stream: (-stream.created_at, stream.id))
