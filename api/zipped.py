"""One SAE of a checkpoint in a file format that another library reads, as one zip file."""

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

from sae_service.errors import InvalidSpec, NotFound
from sae_service.jobs.records import Checkpoint, FileEntry
from sae_service.schema import SAES
from sae_service.spec import JobSpec
from sae_service.storage import artifacts
from sae_service.storage.objects import Storage


def written(job: JobSpec, checkpoint: Checkpoint, storage_url: str, name: str, format: str, path: Path) -> FileEntry:
    """Writes the zip of the SAE `name` to `path`, from stored files that are what the database says they are.

    Raises:
        NotFound: the job has no such SAE.
        InvalidSpec: the format cannot hold it.
        DamagedCheckpoint, StorageFailure: it cannot be read.
    """
    files = _converted(job, checkpoint, Storage(storage_url), name, format)
    write_zip(path, files)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(path=f"{name}.{format}.zip", size=path.stat().st_size, sha256=digest)


def _converted(job: JobSpec, checkpoint: Checkpoint, storage: Storage, name: str, format: str) -> dict[str, bytes]:
    """The files of an SAE in a format."""
    spec = next((sae for sae in job.saes if sae.name == name), None)
    if spec is None:
        raise NotFound(f"the job has no SAE {name!r}; it has {', '.join(sae.name for sae in job.saes)}", param="name")
    folder = f"{SAES}{name}/"
    hashes = {entry.path: entry.sha256 for entry in checkpoint.files if entry.path.startswith(folder)}
    stored = storage.read(checkpoint.key, hashes)
    try:
        return artifacts.converted({path.removeprefix(folder): stored[path] for path in stored}, job, spec, format)
    except InvalidSpec as error:
        raise InvalidSpec(f"{name}: {error.message}.", "format", error.hint) from error


def write_zip(path: Path, files: Mapping[str, bytes]) -> None:
    """Writes a zip whose bytes depend on `files` alone; weights hardly shrink, so nothing is compressed."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name), content)
