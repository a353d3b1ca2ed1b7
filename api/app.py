"""The application: one factory that puts the routes, the errors and the database together."""

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from uuid import uuid4

from fastapi import Depends, FastAPI
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import catalog, continuation, conversion, events, files, jobs, problems
from api.apart import Apart, prepare
from api.dependencies import Jobs, caller
from api.following import Following
from sae_service import __version__
from sae_service.jobs.database import Database
from sae_service.jobs.lost_attempts import LostAttempts, keep_looking
from sae_service.jobs.migration import migrate
from sae_service.jobs.store import JobStore
from sae_service.settings import Settings
from sae_service.storage.objects import Storage

MAX_BODY = 1 << 20


def create_app(settings: Settings) -> FastAPI:
    """The application for these settings. The database is reached when it starts."""
    database = Database(settings.resolved_database_url())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        migrate(database)
        app.state.store = JobStore(database, settings.lease_s)
        app.state.following = Following(app.state.store)
        app.state.storage = Storage(settings.resolved_storage_url())
        app.state.conversions = conversion.Conversions(settings.resolved_storage_url())
        app.state.looks = Apart(at_once=2)
        prepare()
        over = threading.Event()
        # Workers may all be busy or gone, so lost jobs are looked for from here too.
        lost_attempts = LostAttempts(database, settings.lease_s)
        looking = (lost_attempts.look, settings.lease_s, over)
        thread = threading.Thread(target=keep_looking, args=looking, name="lost-attempts", daemon=True)
        thread.start()
        yield
        over.set()
        thread.join()

    app = FastAPI(title="SAE training service", version=__version__, description=__doc__ or "", lifespan=lifespan)
    app.state.settings = settings
    for module in (jobs, continuation, events, files, conversion, catalog):
        app.include_router(module.router, prefix="/v1", dependencies=[Depends(caller)], responses=problems.RESPONSES)
    app.add_api_route("/healthz", healthz, tags=["health"])
    app.add_api_route("/readyz", readyz, tags=["health"], responses=problems.RESPONSES)
    problems.install(app)
    app.add_middleware(Requests)
    return app


async def healthz() -> dict[str, str]:
    """The process answers, also while all threads wait for a database that is away."""
    return {"status": "ok"}


def readyz(store: Jobs) -> dict[str, str]:
    """The database answers."""
    store.find(limit=1)
    return {"status": "ok"}


class Requests:
    """Gives each request an id, which every answer carries, and refuses bodies that are too long."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = scope["request_id"] = f"req_{uuid4().hex}"

        async def numbered(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        answer = _refusal(scope) or self._app
        await answer(scope, receive, numbered)


def _refusal(scope: Scope) -> JSONResponse | None:
    """What is wrong with a request before anything of it is read."""
    headers = dict(scope["headers"])
    length = headers.get(b"content-length", b"0")
    if b"chunked" in headers.get(b"transfer-encoding", b""):
        status, code, detail = 411, "length_required", "Send the body with a Content-Length, not in chunks."
    elif length.isdigit() and int(length) > MAX_BODY:
        status, code, detail = 413, "too_large", f"At most {MAX_BODY} bytes."
    elif "\0" in scope["path"] or b"%00" in scope["query_string"]:
        status, code, detail = 400, "invalid_request", "The character NUL has no place in an address."
    else:
        return None
    body = {"title": HTTPStatus(status).phrase, "status": status, "code": code, "detail": detail}
    return JSONResponse(body, status, media_type="application/problem+json")
