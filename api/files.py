"""Downloads: the files of a checkpoint, whole or in part, never before the checkpoint is committed."""

import base64
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import PurePosixPath
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.responses import StreamingResponse

from api.dependencies import Files, Jobs
from api.problems import problem
from sae_service.errors import NotFound
from sae_service.jobs.records import FileEntry

router = APIRouter(tags=["files"])
MEDIA_TYPES = {".json": "application/json", ".zip": "application/zip"}
PATH = "/jobs/{job_id}/checkpoints/{checkpoint_id}/files/{path:path}"
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": HTTPStatus(status).phrase} for status in (206, 304, 416)
}


@dataclass(frozen=True)
class Conditions:
    """What a client has already, and which part it wants."""

    if_none_match: str | None
    range: str | None
    if_range: str | None


async def _conditions(
    if_none_match: Annotated[str | None, Header()] = None,
    range: Annotated[str | None, Header()] = None,
    if_range: Annotated[str | None, Header()] = None,
) -> Conditions:
    return Conditions(if_none_match, range, if_range)


Wanted = Annotated[Conditions, Depends(_conditions)]


@router.head(PATH, include_in_schema=False)
@router.get(PATH, response_class=StreamingResponse, responses=RESPONSES)
def download(
    request: Request, job_id: str, checkpoint_id: str, path: str, jobs: Jobs, storage: Files, wanted: Wanted
) -> Response:
    """One file. Its ETag is the SHA-256 of its content; a single byte range may be asked for."""
    jobs.summary(job_id)
    checkpoint = jobs.checkpoint(job_id, checkpoint_id)
    entry = next((entry for entry in checkpoint.files if entry.path == path), None)
    if entry is None:
        raise NotFound(f"checkpoint {checkpoint.id} has no file {path}")
    key = f"{checkpoint.key}/{entry.path}"

    def read(start: int, end: int) -> Iterator[bytes]:
        # Asked for before the headers go out: a missing file is an error, not a broken download.
        storage.size(key)
        return storage.stream(key, start, end)

    # A name moves on to other checkpoints, an id never does.
    is_fixed = checkpoint_id == checkpoint.id
    return respond(request, entry, wanted, read, "private, max-age=31536000, immutable" if is_fixed else "private, no-cache")


def respond(
    request: Request, entry: FileEntry, wanted: Conditions, read: Callable[[int, int], Iterator[bytes]], cache_control: str
) -> Response:
    """A file, the part of it that is wanted, or that it has not changed.

    Args:
        read: (start, end) -> the bytes between them, in pieces.
    """
    headers = _headers(entry) | {"Cache-Control": cache_control}
    if wanted.if_none_match is not None and (wanted.if_none_match == "*" or headers["ETag"] in wanted.if_none_match):
        return Response(status_code=304, headers=headers)
    start, end, status = 0, entry.size, 200
    is_same = wanted.if_range in (None, headers["ETag"])
    part = byte_range(wanted.range, entry.size) if wanted.range and is_same else None
    if part is not None:
        start, end, status = *part, 206
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{entry.size}"
        if start >= end:
            headers = {"Content-Range": f"bytes */{entry.size}"}
            return problem(request, 416, "range_not_satisfiable", f"{entry.path} has {entry.size} bytes.", headers=headers)
    headers["Content-Length"] = str(end - start)
    kind = MEDIA_TYPES.get(PurePosixPath(entry.path).suffix, "application/octet-stream")
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=kind)
    return StreamingResponse(read(start, end), status, headers, kind)


def _headers(entry: FileEntry) -> dict[str, str]:
    digest = base64.b64encode(bytes.fromhex(entry.sha256)).decode()
    return {
        "ETag": f'"{entry.sha256}"',
        "Accept-Ranges": "bytes",
        "Content-Disposition": f'attachment; filename="{PurePosixPath(entry.path).name}"',
        "Repr-Digest": f"sha-256=:{digest}:",
    }


def byte_range(header: str, size: int) -> tuple[int, int] | None:
    """Start and end of a single range, or None for a header that is to be ignored; empty if it lies outside."""
    match = re.fullmatch(r"bytes=(\d{0,99})-(\d{0,99})", header.strip())
    if match is None or match.group(0) == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None
    return int(first), min(size, int(last) + 1) if last else size
