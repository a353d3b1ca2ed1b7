"""What a finished job of a kind that trains nothing has found: its record, and its columns as a file."""

from collections.abc import Iterator
from typing import TypeVar

from fastapi import Request, Response

from api.files import Wanted, respond
from sae_service.errors import DamagedCheckpoint, NotFound
from sae_service.jobs.records import Checkpoint, FileEntry
from sae_service.jobs.store import JobStore
from sae_service.schema import Frozen
from sae_service.storage.objects import Storage

Record = TypeVar("Record", bound=Frozen)
SAID = {
    "statistics": ("measures no statistics", "there are statistics"),
    "steering": ("steers no model", "there is something to see"),
    "attribution": ("attributes nothing", "there is something to see"),
}


def _found(jobs: JobStore, job_id: str, kind: str, path: str) -> tuple[Checkpoint, FileEntry]:
    """The final checkpoint of a job of a kind, and a file of it. Raises NotFound."""
    job, (does_not, there_is) = jobs.summary(job_id), SAID[kind]
    if job.summary.kind != kind:
        raise NotFound(f"job {job_id} {does_not}: its kind is {job.summary.kind}.", "job_id", f"Submit one with kind: {kind}.")
    if job.status != "succeeded":
        raise NotFound(f"job {job_id} is {job.status}; {there_is} once it has succeeded", "job_id")
    final = jobs.checkpoint(job_id, "latest")
    entry = next((entry for entry in final.files if entry.path == path), None)
    if entry is None:
        raise NotFound(f"checkpoint {final.id} has no file {path}")
    return final, entry


def record(of: type[Record], jobs: JobStore, storage: Storage, job_id: str, kind: str, path: str) -> Record:
    """What a job of a kind has found. Raises NotFound, and DamagedCheckpoint if it cannot be read."""
    final, entry = _found(jobs, job_id, kind, path)
    try:
        return of.model_validate_json(storage.get(f"{final.key}/{entry.path}"))
    except ValueError as error:
        raise DamagedCheckpoint(f"what job {job_id} has found cannot be read: {error}") from error


def file(request: Request, jobs: JobStore, storage: Storage, job_id: str, kind: str, path: str, wanted: Wanted) -> Response:
    """A file of what a job of a kind has found. Raises NotFound."""
    final, entry = _found(jobs, job_id, kind, path)
    key = f"{final.key}/{entry.path}"

    def read(start: int, end: int) -> Iterator[bytes]:
        # Asked for before the headers go out: a missing file is an error, not a broken download.
        storage.size(key)
        return storage.stream(key, start, end)

    return respond(request, entry, wanted, read, "private, no-cache")
