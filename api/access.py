"""Who may speak to the service: from which page, with which key, and for what. Decided before a body is read."""

import logging
import re
import time
from dataclasses import dataclass

import anyio
from anyio import CapacityLimiter, to_thread
from fastapi import Request, Response

from api.problems import RETRY_AFTER_S, problem
from sae_service.errors import ServiceUnavailable, UnknownKey
from sae_service.jobs.keys import SCOPES, Key, Keys, Scope, hashed
from sae_service.jobs.owner import DEFAULT_PROJECT

log = logging.getLogger("api")
FRESH_S = 3.0
"""Seconds for which the keys in the database are not read again: as long may a revoked one still be used."""
LOCAL = ("localhost", "127.0.0.1", "[::1]")
OPEN = re.compile(r"/(healthz|readyz|openapi\.json|docs(/.*)?)")
"""What anybody may see: nothing in it is about a job."""
SAFE = ("GET", "HEAD", "OPTIONS")
SUBMITS = re.compile(r"/v1/jobs(/[^/]*/(extend|fork|retry))?|/v1/saes/[^/]*/explanations")


@dataclass(frozen=True)
class Caller:
    """Who asks: the name and the hash of the key, or neither where no key is asked for."""

    name: str | None = None
    digest: str = ""
    project: str = DEFAULT_PROJECT
    scopes: tuple[Scope, ...] = SCOPES


class Callers:
    """Those who hold a key: of the environment, or of the database, which is read every few seconds at most."""

    def __init__(self, keys: Keys, digests: tuple[str, ...]) -> None:
        self._keys = keys
        self._given = {digest: Caller(f"environment-{digest[:8]}", digest) for digest in digests}
        self._stored: dict[str, Key] | None = None
        self._read_at = -FRESH_S
        self._reading = anyio.Lock()
        # No thread of its own pool: these may all wait for the database.
        self._limiter = CapacityLimiter(1)

    async def by(self, key: str | None) -> Caller | None:
        """The holder of a key. Anybody while the service has never had one, nobody for one that is unknown or worthless.

        Raises ServiceUnavailable if the keys have never been read.
        """
        digest = hashed(key) if key else ""
        if digest in self._given:
            return self._given[digest]
        if self._is_stale():
            async with self._reading:
                if self._is_stale():
                    await self.read()
        if self._stored is None:
            raise ServiceUnavailable("the database does not answer")
        if not self._given and not self._stored:
            return Caller()
        found = self._stored.get(digest)
        return Caller(found.name, digest, found.project, found.scopes) if found and found.is_valid else None

    def _is_stale(self) -> bool:
        return time.monotonic() - self._read_at >= FRESH_S

    async def read(self) -> None:
        """Reads the keys. While the database is away, those that were known go on: they open nothing without it."""
        try:
            self._stored = await to_thread.run_sync(self._keys.by_hash, limiter=self._limiter)
        except ServiceUnavailable as error:
            log.warning("the keys cannot be read: %s", error)
        self._read_at = time.monotonic()


async def refusal(request: Request) -> Response | None:
    """The answer to a request that may not be made, or None; then `request.state.caller` is who asks."""
    # Never request.url: it is made of the Host header, which may say anything.
    path = request.scope["path"]
    if OPEN.fullmatch(path):
        return None
    try:
        caller = await holder(request)
    except ServiceUnavailable as error:
        return problem(request, 503, error.code, error.message, headers={"Retry-After": RETRY_AFTER_S})
    if caller is None:
        return _unauthorized(request)
    if caller.name is None and (refused := _foreign(request)):
        return refused
    scope = needed(request.method, path)
    if scope not in caller.scopes:
        detail = f"This needs the scope {scope}; the key {caller.name} has {', '.join(caller.scopes) or 'none'}."
        headers = {"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{scope}"'}
        return problem(request, 403, "missing_scope", detail, headers=headers)
    request.state.caller = caller
    return None


async def holder(request: Request) -> Caller | None:
    """Who asks, by the key that is sent; see `Callers.by`."""
    return await request.app.state.callers.by(_key(request))


def _key(request: Request) -> str | None:
    kind, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() if kind.lower() == "bearer" else None


def _unauthorized(request: Request) -> Response:
    """The answer to a request without a key, or with one that opens nothing. It does not say why that one does not."""
    if _key(request):
        code, detail, challenge = UnknownKey.code, "The API key is unknown, revoked or expired.", 'Bearer error="invalid_token"'
    else:
        code, detail = "unauthorized", "Send one of the service's API keys as 'Authorization: Bearer KEY'."
        challenge = "Bearer"
    return problem(request, 401, code, detail, headers={"WWW-Authenticate": challenge})


def needed(method: str, path: str) -> Scope:
    """The scope that a request needs. What is new and changes something needs the one that few have."""
    if method in SAFE:
        return "read"
    return "submit" if method == "POST" and SUBMITS.fullmatch(path) else "manage"


def _foreign(request: Request) -> Response | None:
    """What keeps web pages out where no key is asked for: a browser speaks for them, from this machine."""
    host = request.headers.get("host", "")
    if re.sub(r":\d*$", "", host).lower() not in LOCAL:
        detail = f"Without an API key the service is only called {', '.join(LOCAL)}, and not {host!r}."
        return problem(request, 421, "misdirected_request", f"{detail} Make a key with `sae-service keys create`.")
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    is_ours = origin in (None, f"http://{host}", f"https://{host}") and site in (None, "same-origin", "none")
    if request.method in SAFE or is_ours:
        return None
    detail = "Without an API key, pages of another origin may change nothing. Make a key with `sae-service keys create`."
    return problem(request, 403, "foreign_origin", detail)
