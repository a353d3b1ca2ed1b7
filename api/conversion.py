"""Downloads of one SAE of a checkpoint in a file format that another library reads, as one zip file."""

import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from api import zipped
from api.apart import Apart, TooLong
from api.dependencies import Jobs
from api.files import RESPONSES, Wanted, respond
from sae_service.errors import DamagedCheckpoint, ServiceUnavailable
from sae_service.jobs.records import Checkpoint, FileEntry
from sae_service.schema import SAES, FormatName
from sae_service.spec import JobSpec
from sae_service.spec.stored import read_training

router = APIRouter(tags=["files"])
PATH = "/jobs/{job_id}/checkpoints/{checkpoint_id}/saes/{name}/download"
CHUNK = 1 << 20
KEPT = 4
LIMIT_S, BYTES_PER_S = 60, 10 << 20
"""How long a conversion may take: a minute, and more for a large SAE."""


class Conversions:
    """The zips that were asked for last, so that what is asked for in parts, or again, is made once.

    They are on disk, under no name, so that they are gone with this process.
    """

    def __init__(self, storage_url: str) -> None:
        """Makes one for the checkpoints in a storage. One zip is made at a time, since that holds an SAE in memory."""
        self._storage_url = storage_url
        self._apart = Apart(at_once=1)
        self._made: OrderedDict[tuple[str, str, str], tuple[FileEntry, IO[bytes]]] = OrderedDict()

    async def opened(self, job: JobSpec, checkpoint: Checkpoint, name: str, format: str) -> tuple[FileEntry, IO[bytes]]:
        """A zip, to be read by `os.pread`. Raises what `zipped.written` raises, and ServiceUnavailable if it takes too long."""
        key = (checkpoint.id, name, format)
        if key not in self._made:
            self._made[key] = await self._make(job, checkpoint, name, format)
        self._made.move_to_end(key)
        entry, file = self._made[key]
        while len(self._made) > KEPT:
            self._made.popitem(last=False)[1][1].close()
        return entry, os.fdopen(os.dup(file.fileno()), "rb")

    async def _make(self, job: JobSpec, checkpoint: Checkpoint, name: str, format: str) -> tuple[FileEntry, IO[bytes]]:
        size = sum(entry.size for entry in checkpoint.files if entry.path.startswith(f"{SAES}{name}/"))
        limit_s = LIMIT_S + size / BYTES_PER_S
        with tempfile.TemporaryDirectory(prefix="conversion-") as folder:
            path = Path(folder) / "zip"
            try:
                entry = await self._apart.run(limit_s, zipped.written, job, checkpoint, self._storage_url, name, format, path)
            except TooLong:
                hint = "Download it without a format."
                raise ServiceUnavailable(f"the conversion was not done in {limit_s:.0f} s.", hint=hint) from None
            return entry, path.open("rb")


async def _conversions(request: Request) -> Conversions:
    return request.app.state.conversions


@router.head(PATH, include_in_schema=False)
@router.get(PATH, response_class=StreamingResponse, responses=RESPONSES)
async def download_as(
    request: Request, job_id: str, checkpoint_id: str, name: str, jobs: Jobs, wanted: Wanted,
    conversions: Annotated[Conversions, Depends(_conversions)],
    format: Annotated[FormatName, Query(description="The library that is to read it.")],
) -> Response:  # fmt: skip
    """One SAE as a zip of the files that another library reads, with its figures and its provenance.

    The same SAE gives the same bytes; the ETag is their SHA-256, and a single byte range may be asked for.
    """
    job = await run_in_threadpool(jobs.get, job_id)
    checkpoint = await run_in_threadpool(jobs.checkpoint, job_id, checkpoint_id)
    try:
        entry, file = await conversions.opened(read_training(job.spec), checkpoint, name, format)
    except DamagedCheckpoint:
        # Files that are gone because the checkpoint was retired meanwhile are no damage: NotFound.
        await run_in_threadpool(jobs.checkpoint, job_id, checkpoint.id)
        raise
    # A later version of the service may write other bytes, so a copy is asked about before it is used again.
    return respond(request, entry, wanted, partial(_pieces, file), "private, no-cache")


def _pieces(file: IO[bytes], start: int, end: int) -> Iterator[bytes]:
    with file:
        for position in range(start, end, CHUNK):
            # Others read the same file elsewhere.
            yield os.pread(file.fileno(), min(CHUNK, end - position), position)
