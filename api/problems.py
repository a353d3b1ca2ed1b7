"""Errors as `application/problem+json` (RFC 9457), with the fields `code` and `param` that clients look at."""

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from sae_service.errors import (
    Conflict,
    DamagedCheckpoint,
    DatabaseFailure,
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


_CONTENT = {"application/problem+json": {"schema": Problem.model_json_schema()}}
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": HTTPStatus(status).phrase, "content": _CONTENT}
    for status in (400, 401, 404, 409, 413, 422, 500, 503)
}


def install(app: FastAPI) -> None:
    """Makes every error of `app` a problem."""
    app.add_exception_handler(SAEServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _bug)


def problem(
    request: Request, status: int, code: str, detail: str, param: str | None = None,
    errors: list[FieldProblem] | None = None, headers: dict[str, str] | None = None,
) -> JSONResponse:  # fmt: skip
    """The response for one error."""
    body = Problem(
        type=f"urn:sae-service:problem:{code}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        instance=request.url.path,
        code=code,
        param=param,
        request_id=request.scope.get("request_id", ""),
        errors=errors or [],
    )
    return JSONResponse(body.model_dump(), status, headers, media_type="application/problem+json")


def _status(error: SAEServiceError) -> int:
    match error:
        case NotFound():
            return 404
        case Conflict() | WrongVersion():
            return 409
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
    return problem(request, status, "invalid_spec" if status == 422 else "invalid_request", detail, errors[0].pointer, errors)


def _pointer(location: tuple[Any, ...], body: Any) -> str:
    """The JSON pointer of a field in the body, or the name of a parameter."""
    source, *parts = location
    if source != "body":
        return str(parts[0]) if parts else ""
    return pointer(parts, body)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    return problem(request, error.status_code, code, str(error.detail), headers=dict(error.headers or {}))


async def _bug(request: Request, error: Exception) -> JSONResponse:
    log.error("unexpected error", exc_info=error)
    return problem(request, 500, "internal", "Something went wrong in the service; its log has the details.")
