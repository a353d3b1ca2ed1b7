"""What the routes are given: the jobs, the storage, the settings, and the caller's key."""

import hashlib
import hmac
from typing import Annotated

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.apart import Apart
from sae_service.jobs.store import JobStore
from sae_service.settings import Settings
from sae_service.storage.objects import Storage


def _store(request: Request) -> JobStore:
    return request.app.state.store


def _storage(request: Request) -> Storage:
    return request.app.state.storage


def _settings(request: Request) -> Settings:
    return request.app.state.settings


async def _looks(request: Request) -> Apart:
    return request.app.state.looks


Jobs = Annotated[JobStore, Depends(_store)]
Files = Annotated[Storage, Depends(_storage)]
Looks = Annotated[Apart, Depends(_looks)]
TheSettings = Annotated[Settings, Depends(_settings)]
Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]


def caller(settings: TheSettings, bearer: Bearer) -> str:
    """The hash of the caller's key, or "" where no key is asked for. Refuses an unknown key with 401."""
    if not settings.api_key_sha256:
        return ""
    given = hashlib.sha256(bearer.credentials.encode()).hexdigest() if bearer else ""
    if not any(hmac.compare_digest(given, known.lower()) for known in settings.api_key_sha256):
        message = "Send one of the service's API keys as 'Authorization: Bearer KEY'."
        raise HTTPException(401, message, {"WWW-Authenticate": "Bearer"})
    return given


Caller = Annotated[str, Depends(caller)]
