"""Whether the API works: what a load balancer and a cluster ask."""

import logging
import time
from collections.abc import Callable
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Request

from api import problems
from sae_service.errors import ServiceUnavailable, WrongVersion

router = APIRouter(tags=["health"])
log = logging.getLogger("api")
STUCK_S = 60.0
"""A thread that waits for a database that is away comes back sooner."""


class Threads:
    """Notices that all threads that answer requests are held by the same requests for STUCK_S."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._held, self._since = clock, frozenset[Any](), 0.0

    def are_stuck(self, limiter: CapacityLimiter) -> bool:
        """One look; to be called often, for it compares with the look before."""
        found = limiter.statistics()
        held = frozenset(found.borrowers) if found.borrowed_tokens >= found.total_tokens else frozenset()
        if held != self._held:
            self._held, self._since = held, self._clock()
        return bool(held) and self._clock() - self._since >= STUCK_S


@router.get("/healthz", responses=problems.RESPONSES)
async def healthz(request: Request) -> dict[str, str]:
    """The process answers, also while all threads wait for a database that is away. 503 if none of them comes back."""
    if request.app.state.threads.are_stuck(to_thread.current_default_thread_limiter()):
        raise ServiceUnavailable(f"no thread has come back for {STUCK_S:.0f} s; the API has to be started again")
    return {"status": "ok"}


@router.get("/readyz", responses=problems.RESPONSES)
def readyz(request: Request) -> dict[str, str]:
    """The database answers, and has the tables of this release."""
    try:
        request.app.state.store.check()
    except WrongVersion as error:
        raise ServiceUnavailable(error.message, hint=error.hint) from error
    except ServiceUnavailable as error:
        # Where the database is, is nothing for whoever may ask this without a key.
        log.warning("not ready: %s", error)
        raise ServiceUnavailable("the database does not answer; the service's log says more") from error
    return {"status": "ok"}
