"""What all requests have in common: headers that keep browsers in bounds, and what is refused before it is read."""

import re
from uuid import uuid4

from fastapi import Request, Response
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import access
from api.problems import bug, problem
from sae_service.errors import BadRequest

MAX_BODY = 1 << 20
JSON = re.compile(r"application/([\w.-]+\+)?json", re.IGNORECASE)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def complete(headers: MutableHeaders, request_id: str) -> None:
    """Gives an answer the headers that all answers have."""
    headers["X-Request-ID"] = request_id
    for name, value in HEADERS.items():
        headers.setdefault(name, value)
    # What can be asked about again may be kept, by its user alone.
    headers.setdefault("Cache-Control", "private, no-cache" if "etag" in headers else "no-store")


def new_request_id() -> str:
    """The id of one request, which its answer carries."""
    return f"req_{uuid4().hex}"


class Requests:
    """Gives each answer its headers, that of a bug too, and refuses what is not to be read."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = False

        async def completed(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                complete(MutableHeaders(scope=message), scope["request_id"])
            await send(message)

        request = Request(scope)
        try:
            answer = await access.refusal(request) or _refusal(request) or self._app
            await answer(scope, receive, completed)
        except Exception as error:  # the outermost: Starlette's own answer to a bug is made outside, without our headers
            if has_begun:
                raise
            await bug(request, error)(scope, receive, completed)


def _refusal(request: Request) -> Response | None:
    """What is wrong with a request before anything of it is read."""
    length = request.headers.get("content-length", "0")
    kind = request.headers.get("content-type", "")
    if "chunked" in request.headers.get("transfer-encoding", "").lower():
        return problem(request, 411, "length_required", "Send the body with a Content-Length, not in chunks.")
    if length.isdigit() and int(length) > MAX_BODY:
        return problem(request, 413, "too_large", f"The body has {length} bytes; at most {MAX_BODY} are read.")
    if length != "0" and not JSON.fullmatch(kind.partition(";")[0].strip()):
        detail = f"Send the body as JSON, with the header Content-Type: application/json; it is {kind!r}."
        return problem(request, 415, "unsupported_media_type", detail, "Content-Type")
    if "\0" in request.scope["path"] or b"%00" in request.scope["query_string"]:
        return problem(request, 400, BadRequest.code, "The character NUL has no place in an address.")
    return None
