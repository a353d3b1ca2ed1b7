"""The logs of a job's attempts as its users read them: the end of each, `jobs/<job>/logs/<attempt>.log`."""

import re
from pathlib import PurePosixPath

from sae_service.errors import NotFound
from sae_service.storage.job_folders import log_folder
from sae_service.storage.objects import Storage

LONGEST = 64 << 10
"""Bytes that are stored of a log."""
STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters that a terminal would obey, other than tab and newline."""


def shown(content: bytes) -> str:
    """A log as text that a terminal can print."""
    return STEERING.sub("", content.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n"))


def store(storage: Storage, job_id: str, attempt: int, end: bytes) -> None:
    """Stores the end of an attempt's log, in place of what was stored before. Raises StorageFailure."""
    storage.replace(f"{log_folder(job_id)}/{attempt}.log", end[-LONGEST:])


def latest(storage: Storage, job_id: str) -> int:
    """The last attempt of a job that has a log. Raises NotFound if none has, and StorageFailure."""
    names = [PurePosixPath(key).stem for key in storage.keys(log_folder(job_id))]
    attempts = [int(name) for name in names if name.isdecimal()]
    if not attempts:
        raise NotFound(f"job {job_id} has no log yet", hint="There is one soon after its training process has started.")
    return max(attempts)


def read(storage: Storage, job_id: str, attempt: int, lines: int | None = None) -> str:
    """The end of an attempt's log as text, or its last lines. Raises NotFound and StorageFailure."""
    try:
        content = storage.get(f"{log_folder(job_id)}/{attempt}.log")
    except NotFound:
        newest = latest(storage, job_id)
        raise NotFound(f"attempt {attempt} of job {job_id} has no log; the last one that has is {newest}", "attempt") from None
    text = shown(content)
    return text if lines is None else "".join(text.splitlines(keepends=True)[-lines:])
