"""Errors as `application/problem+json` (RFC 9457), with the fields `code` and `param` that clients look at."""

import logging
import re
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Match

from sae_service.errors import (
    BadRequest,
    Conflict,
    DamagedCheckpoint,
    DatabaseFailure,
    InvalidSpec,
    NotFound,
    SAEServiceError,
    ServiceUnavailable,
    StorageFailure,
    WrongVersion,
    sentences,
)
from sae_service.plain_words import sentence
from sae_service.schema import pointer

log = logging.getLogger("api")
RETRY_AFTER_S = "5"
LONG_WORD = re.compile(r"(\S{200})\S+")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


class FieldProblem(BaseModel):
    """One field that is wrong."""

    pointer: str
    detail: str


class Problem(BaseModel):
    """What every error looks like."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    param: str | None = None
    request_id: str
    errors: list[FieldProblem] = []


MEDIA_TYPE = "application/problem+json"
_SCHEMA = Problem.model_json_schema()
# In place, since a reference would mean a part of the whole document.
_SCHEMA["properties"]["errors"]["items"] = _SCHEMA.pop("$defs")["FieldProblem"]
_CONTENT = {MEDIA_TYPE: {"schema": _SCHEMA}}
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": HTTPStatus(status).phrase, "content": _CONTENT}
    for status in (400, 401, 403, 404, 409, 411, 413, 415, 421, 422, 500, 503)
}


def install(app: FastAPI) -> None:
    """Makes every error of `app` a problem."""
    app.add_exception_handler(SAEServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)


def problem(
    request: Request, status: int, code: str, detail: str, param: str | None = None,
    errors: list[FieldProblem] | None = None, headers: dict[str, str] | None = None,
) -> JSONResponse:  # fmt: skip
    """The response for one error."""
    body = document(status, code, detail, request.scope["path"], request.scope["request_id"])
    fields = [FieldProblem(pointer=_cut(error.pointer), detail=_cut(error.detail)) for error in errors or []]
    body = body.model_copy(update={"param": None if param is None else _cut(param), "errors": fields})
    return JSONResponse(body.model_dump(), status, headers, media_type=MEDIA_TYPE)


def document(status: int, code: str, detail: str, instance: str, request_id: str) -> Problem:
    """What an error looks like, without the words that nobody would read to their end."""
    return Problem(
        type=f"urn:sae-service:problem:{code}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=_cut(detail),
        instance=_cut(instance),
        code=code,
        request_id=request_id,
    )


def _cut(text: str) -> str:
    return LONG_WORD.sub(r"\1…", text)


def bug(request: Request, error: Exception) -> JSONResponse:
    """The answer to a request that came to an error which nobody has foreseen."""
    log.error("%s: unexpected error", request.scope["request_id"], exc_info=error)
    return problem(request, 500, SAEServiceError.code, "Something went wrong in the service; its log has the details.")


def _status(error: SAEServiceError) -> int:
    match error:
        case NotFound():
            return 404
        case Conflict() | WrongVersion():
            return 409
        case BadRequest():
            return 400
        case DamagedCheckpoint() | DatabaseFailure():
            return 500
        case ServiceUnavailable() | StorageFailure():
            return 503
    return 422


async def _service_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SAEServiceError)
    status = _status(error)
    if status == 500:
        log.error("%s", error, exc_info=error)
    # Common clients repeat a 409 by themselves; ours will not change by waiting.
    headers = {409: {"X-Should-Retry": "false"}, 503: {"Retry-After": RETRY_AFTER_S}}.get(status)
    detail = sentences(error.message, error.hint)
    errors = [FieldProblem(pointer=error.param, detail=detail)] if error.param else []
    return problem(request, status, error.code, detail, error.param, errors, headers)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if any(item["type"] == "json_invalid" for item in found):
        return problem(request, 400, "malformed_json", f"The body is not JSON: {found[0]['ctx']['error']}.")
    errors = [FieldProblem(pointer=_pointer(item["loc"], error.body), detail=sentence(item)) for item in found]
    status = 422 if found[0]["loc"][0] == "body" else 400
    detail = f"{errors[0].pointer}: {errors[0].detail}" if errors[0].pointer else f"The body {errors[0].detail}."
    code = InvalidSpec.code if status == 422 else BadRequest.code
    return problem(request, status, code, detail, errors[0].pointer, errors)


def _pointer(location: tuple[Any, ...], body: Any) -> str:
    """The JSON pointer of a field in the body, or the name of a parameter."""
    source, *parts = location
    if source != "body":
        return str(parts[0]) if parts else ""
    return pointer(parts, body)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 400 and error.__cause__ is not None:
        # Of a body that Python's own reader of JSON gives up; FastAPI says no more of it.
        return problem(request, 400, "malformed_json", f"The body {_unreadable(error.__cause__)}.")
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_allowed(request))
    detail = "There is nothing at this address; /docs lists what there is." if error.status_code == 404 else str(error.detail)
    return problem(request, error.status_code, code, detail, headers=headers)


def _unreadable(error: BaseException) -> str:
    """Why a body cannot be read as JSON."""
    match error:
        case RecursionError():
            return "is nested too deeply"
        case UnicodeDecodeError():
            return f"is not UTF-8: byte {error.start + 1} is wrong"
    return f"cannot be read as JSON: {error}"


def _allowed(request: Request) -> list[str]:
    """The methods of an address: each of its routes knows its own only."""

    def is_there(method: str) -> bool:
        scope = dict(request.scope) | {"method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return [method for method in METHODS if is_there(method)]
