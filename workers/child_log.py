"""The log of a training process: a bounded file on this machine, whose end is kept where users can read it."""

import logging
import os
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path
from typing import BinaryIO

from sae_service.errors import StorageFailure
from sae_service.storage.attempt_logs import LONGEST

log = logging.getLogger("workers")
LAST_LINES = 15
LOG_BYTES = 10 << 20
"""Largest size of a log; of a longer one the second half stays."""
KEEP_S = 30
"""Time between two looks at whether there is anything new to keep."""
WITHHELD = b"[withheld]"


class ChildLog:
    """A log to which a training process appends."""

    def __init__(
        self, path: Path, keep: Callable[[bytes], None], credentials: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """Makes its folder. Raises OSError.

        Args:
            keep: keeps an end of the log. It may take its time, since it has a thread, and raise StorageFailure.
            credentials: what the process knows and may say, but no reader is to see.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._keep, self._clock = path, keep, clock
        # The longest first: one may begin with another.
        self._credentials = [os.fsencode(word) for word in sorted(credentials, key=len, reverse=True)]
        self._reading, self._kept, self._due = threading.Lock(), b"", clock()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="log")
        self._keeping: Future[None] | None = None

    def open(self) -> BinaryIO:
        """The file to append to. Raises OSError."""
        return self._path.open("ab")

    def look(self) -> None:
        """Bounds the log, and keeps its end if it is time and there is more of it; to be called often."""
        # A log that somebody has taken away, or a disk that is full, is no reason to end a job.
        with suppress(OSError):
            size = self._path.stat().st_size
            if size > LOG_BYTES:
                self._cut(size)
            if size and self._clock() >= self._due and (self._keeping is None or self._keeping.done()):
                self._due = self._clock() + KEEP_S
                self._keeping = self._executor.submit(copy_context().run, self._keep_end)

    def keep(self, timeout_s: float) -> None:
        """Keeps its end as it is now. Waits for that, but no longer than this: it is no reason to hold a job up."""
        wait([self._executor.submit(copy_context().run, self._keep_end)], timeout_s)

    def close(self) -> None:
        """Ends its thread, once that has kept what it was asked to keep."""
        self._executor.shutdown(wait=False)

    def last_words(self) -> str:
        """Its last lines."""
        try:
            return "\n".join(self._end().decode(errors="replace").splitlines()[-LAST_LINES:])
        except OSError as error:
            return f"(the log cannot be read: {error})"

    def _keep_end(self) -> None:
        try:
            end = self._end()
            if end != self._kept:
                self._keep(end)
                self._kept = end
        except (StorageFailure, OSError) as error:
            log.warning("the log of the attempt cannot be kept: %s", error)

    def _end(self) -> bytes:
        """Its last lines, LONGEST bytes of them at most. Raises OSError."""
        with self._reading, self._path.open("rb") as file:
            # So many more that no credential is cut in two where the reading begins.
            before = sum(map(len, self._credentials))
            size = file.seek(0, 2)
            file.seek(max(0, size - LONGEST - before))
            end = file.read()
        for credential in self._credentials:
            end = end.replace(credential, WITHHELD)
        end = end[-LONGEST:]
        return end if size <= LONGEST else end[end.find(b"\n") + 1 :]

    def _cut(self, size: int) -> None:
        """Keeps the second half of a log of this size; what the process appends goes on behind it. Raises OSError."""
        with self._reading, self._path.open("r+b") as file:
            file.seek(size - LOG_BYTES // 2)
            end = file.read()
            file.seek(0)
            file.write(b"[The beginning was deleted: the log was too long.]\n" + end[end.find(b"\n") + 1 :])
            file.truncate()
