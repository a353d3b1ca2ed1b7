"""Downloads of one SAE of a checkpoint in a file format that another library reads, as one zip file."""

import hashlib
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from typing import IO, Annotated

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse

from api.dependencies import Files, Jobs
from api.files import RESPONSES, Conditions, Wanted, respond
from sae_service.errors import DamagedCheckpoint, InvalidSpec, NotFound
from sae_service.jobs.records import Checkpoint, FileEntry
from sae_service.schema import FormatName
from sae_service.spec import JobSpec
from sae_service.storage import artifacts
from sae_service.storage.objects import Storage

router = APIRouter(tags=["files"])
PATH = "/jobs/{job_id}/checkpoints/{checkpoint_id}/saes/{name}/download"
CHUNK = 1 << 20


async def _limiter(request: Request) -> CapacityLimiter:
    return request.app.state.conversions


@router.head(PATH, include_in_schema=False)
@router.get(PATH, response_class=StreamingResponse, responses=RESPONSES)
async def download_as(
    request: Request, job_id: str, checkpoint_id: str, name: str, jobs: Jobs, storage: Files, wanted: Wanted,
    limiter: Annotated[CapacityLimiter, Depends(_limiter)],
    format: Annotated[FormatName, Query(description="The library that is to read it.")],
) -> Response:  # fmt: skip
    """One SAE as a zip of the files that another library reads, with its figures and its provenance.

    The same SAE gives the same bytes; the ETag is their SHA-256, and a single byte range may be asked for.
    """

    def answer() -> Response:
        spec = JobSpec.model_validate(jobs.get(job_id).spec)
        checkpoint = jobs.checkpoint(job_id, checkpoint_id)
        try:
            converted = _converted(spec, checkpoint, storage, name, format)
        except DamagedCheckpoint:
            # Files that are gone because the checkpoint was retired meanwhile are no damage: NotFound.
            jobs.checkpoint(job_id, checkpoint.id)
            raise
        return _respond(request, wanted, f"{name}.{format}.zip", converted)

    return await to_thread.run_sync(answer, limiter=limiter)


def _converted(job: JobSpec, checkpoint: Checkpoint, storage: Storage, name: str, format: FormatName) -> dict[str, bytes]:
    """The files of an SAE in a format, from stored ones that are what the database says they are."""
    spec = next((sae for sae in job.saes if sae.name == name), None)
    if spec is None:
        raise NotFound(f"the job has no SAE {name!r}; it has {', '.join(sae.name for sae in job.saes)}", param="name")
    folder = f"saes/{name}/"
    hashes = {entry.path: entry.sha256 for entry in checkpoint.files if entry.path.startswith(folder)}
    stored = storage.read(checkpoint.key, hashes)
    try:
        return artifacts.converted({path.removeprefix(folder): stored[path] for path in stored}, job, spec, format)
    except InvalidSpec as error:
        raise InvalidSpec(f"{name}: {error.message}.", "format", error.hint) from error


def _respond(request: Request, wanted: Conditions, name: str, files: Mapping[str, bytes]) -> Response:
    # On disk, so that a slow client holds no SAE in memory. It is gone once its last reader is.
    file = tempfile.TemporaryFile()  # noqa: SIM115
    write_zip(file, files)
    size = file.tell()
    file.seek(0)
    entry = FileEntry(path=name, size=size, sha256=hashlib.file_digest(file, "sha256").hexdigest())
    # A later version of the service may write other bytes, so a copy is asked about before it is used again.
    return respond(request, entry, wanted, partial(_pieces, file), "private, no-cache")


def write_zip(file: IO[bytes], files: Mapping[str, bytes]) -> None:
    """Writes a zip whose bytes depend on `files` alone; weights hardly shrink, so nothing is compressed."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name), content)


def _pieces(file: IO[bytes], start: int, end: int) -> Iterator[bytes]:
    with file:
        file.seek(start)
        for position in range(start, end, CHUNK):
            yield file.read(min(CHUNK, end - position))
