"""What the routes are given: the jobs that the caller may see, the storage, the settings."""

from typing import Annotated

from fastapi import Depends, Request

from api.access import Caller
from api.apart import Apart
from sae_service.jobs.owner import Owner
from sae_service.jobs.store import JobStore
from sae_service.settings import Settings
from sae_service.storage.cache import ActivationCache
from sae_service.storage.objects import Storage

# All of them async, but the one that opens files: what is not takes a thread, which costs more than the look itself.


async def _caller(request: Request) -> Caller:
    return request.state.caller


async def _store(request: Request) -> JobStore:
    caller: Caller = request.state.caller
    owner = Owner(caller.project, caller.name, sees_all=not request.app.state.settings.projects)
    return request.app.state.store.of(owner)


async def _storage(request: Request) -> Storage:
    return request.app.state.storage


def _cache(request: Request) -> ActivationCache:
    settings: Settings = request.app.state.settings
    return ActivationCache(Storage(settings.resolved_cache_url()), settings.cache_bytes)


async def _settings(request: Request) -> Settings:
    return request.app.state.settings


async def _looks(request: Request) -> Apart:
    return request.app.state.looks


TheCaller = Annotated[Caller, Depends(_caller)]
Jobs = Annotated[JobStore, Depends(_store)]
Files = Annotated[Storage, Depends(_storage)]
Cache = Annotated[ActivationCache, Depends(_cache)]
Looks = Annotated[Apart, Depends(_looks)]
TheSettings = Annotated[Settings, Depends(_settings)]
