"""What is known of each request: its id, a line in the log, and its part in the metrics."""

import logging
import re
import time
from contextlib import AbstractContextManager

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import metrics
from api.requests import new_request_id
from sae_service import logs, tracing

log = logging.getLogger("api.access")
# Of a client's own id only what can do no harm in a log or a header.
SAFE_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
LONGEST_PATH = 200


class AccessLog:
    """The outermost layer: a request has an id from here on, and a line in the log whatever becomes of it inside."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = scope["request_id"] = _id(scope)
        scope.setdefault("state", {})
        began, status = time.monotonic(), None

        async def seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with logs.about(request_id=request_id), _span(scope):
            try:
                await self._app(scope, receive, seen)
            finally:
                _tell(scope, status, time.monotonic() - began)


def _span(scope: Scope) -> AbstractContextManager[None]:
    above = dict(scope["headers"]).get(b"traceparent", b"").decode("latin-1")
    return tracing.span(f"{scope['method']} request", above or None, request_id=scope["request_id"], path=scope["path"])


def _id(scope: Scope) -> str:
    given = dict(scope["headers"]).get(b"x-request-id", b"")
    return given.decode() if SAFE_ID.fullmatch(given) else new_request_id()


def _tell(scope: Scope, status: int | None, seconds: float) -> None:
    """The line and the figures; `status` is None if the client went away before it was answered."""
    metrics.observe(getattr(scope.get("route"), "path", "none"), scope["method"], status, seconds)
    fields = {
        "method": scope["method"],
        # As it was sent: nothing in it can begin another line. The query stays out, it may hold secrets.
        "path": scope.get("raw_path", b"").decode("ascii", "replace")[:LONGEST_PATH],
        "status": status,
        "duration_ms": round(1000 * seconds, 1),
        "key": getattr(scope["state"].get("caller"), "name", None),
    }
    log.log(_level(scope["method"], status), "request", extra={"about": fields})


def _level(method: str, status: int | None) -> int:
    """Successful GET and HEAD requests would drown the rest."""
    has_found = method in ("GET", "HEAD") and status is not None and status < 400
    return logging.DEBUG if has_found else logging.INFO
