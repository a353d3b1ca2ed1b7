"""The application: one factory that puts the routes, the errors and the database together."""

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI

from api import (
    attribution,
    cache,
    catalog,
    continuation,
    conversion,
    docs,
    events,
    explanations,
    files,
    health,
    jobs,
    latents,
    logs,
    metrics,
    problems,
    saes,
    statistics,
    steering,
)
from api.access import Callers
from api.access_log import AccessLog
from api.apart import Apart, prepare
from api.following import Following
from api.parameters import only_known_parameters
from api.requests import Requests
from sae_service import __version__
from sae_service.jobs.database import Database
from sae_service.jobs.explanations import Explanations
from sae_service.jobs.keys import Keys
from sae_service.jobs.lost_attempts import LostAttempts, keep_looking
from sae_service.jobs.migration import is_current, migrate
from sae_service.jobs.store import JobStore
from sae_service.settings import Settings
from sae_service.storage.objects import Storage


def create_app(settings: Settings) -> FastAPI:
    """The application for these settings. Its database has this release's tables from here on.

    Raises:
        ServiceUnavailable, WrongVersion, StorageFailure: the database or the storage does not answer, or is not ours.
    """
    database = Database(settings.resolved_database_url(), name="sae-service-api")
    migrate(database)
    keys, storage = Keys(database), Storage(settings.resolved_storage_url())
    # Whether there is such a thing does not matter: the storage answers.
    storage.has_published("start")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.callers = Callers(keys, settings.api_key_sha256)
        await app.state.callers.read()
        app.state.store = JobStore(database, settings.lease_s)
        app.state.following = Following(app.state.store)
        app.state.conversions = conversion.Conversions(settings.resolved_storage_url())
        app.state.looks = Apart(at_once=2)
        prepare()
        over = threading.Event()
        # Workers may all be busy or gone, so lost jobs are looked for from here too.
        lost_attempts = LostAttempts(database, settings.lease_s)
        looking = (lambda: lost_attempts.look(lambda: is_current(database)), settings.lease_s, over)
        thread = threading.Thread(target=keep_looking, args=looking, name="lost-attempts", daemon=True)
        thread.start()
        yield
        over.set()
        thread.join()

    app = FastAPI(
        title="SAE training service", version=__version__, lifespan=lifespan,
        description="Trains sparse autoencoders: submit a job, follow it, download SAEs.",
        docs_url=None, redoc_url=None, redirect_slashes=False,
    )  # fmt: skip
    app.state.settings, app.state.keys, app.state.storage = settings, keys, storage
    app.state.tables, app.state.explanations = saes.Tables(storage), Explanations(database)
    app.state.threads, app.state.registry = health.Threads(), metrics.registry(database, settings.lease_s)
    kinds = (latents, explanations, statistics, steering, attribution)
    for module in (jobs, continuation, events, logs, files, conversion, saes, *kinds, cache, catalog):
        app.include_router(module.router, prefix="/v1", dependencies=[Depends(only_known_parameters)], responses=problems.RESPONSES)
    app.include_router(health.router)
    app.include_router(metrics.router)
    docs.install(app)
    problems.install(app)
    app.add_middleware(Requests)
    app.add_middleware(AccessLog)
    return app
