"""The log of a training process: a bounded file on this machine, whose end is stored where users can read it."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path
from typing import BinaryIO

from sae_service.storage.attempt_logs import LONGEST, shown
from workers.credentials import Withholder
from workers.errands import logged

log = logging.getLogger("workers")
LAST_LINES = 15
LOG_BYTES = 10 << 20
"""Largest size of a log; of a longer one the second half stays."""
STORE_S = 30
"""Time between two looks at whether there is anything new to store."""


class ChildLog:
    """A log to which a training process appends."""

    def __init__(
        self, path: Path, store: Callable[[bytes], None], withheld: Withholder, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Makes its folder. Raises OSError.

        Args:
            store: stores an end of the log. It may take its time, since it has a thread, and raise StorageFailure.
            withheld: takes out of a text what no reader is to see.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._store, self.withheld, self._clock = path, store, withheld, clock
        self._reading, self._stored, self._due = threading.Lock(), b"", clock()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="log")
        self._storing: Future[None] | None = None

    def open(self) -> BinaryIO:
        """The file to append to. Raises OSError."""
        return self._path.open("ab")

    def look(self) -> None:
        """Bounds the log, and stores its end if it is time and there is more of it; to be called often."""
        # A log that somebody has taken away, or a disk that is full, is no reason to end a job.
        with suppress(OSError):
            size = self._path.stat().st_size
            if size > LOG_BYTES:
                self._cut(size)
            if size and self._clock() >= self._due and (self._storing is None or self._storing.done()):
                self._due = self._clock() + STORE_S
                self._storing = self._soon(is_growing=True)

    def store(self, timeout_s: float, is_growing: bool) -> None:
        """Stores its end as it is now. Waits for that, but no longer than this: it is no reason to hold a job up.

        Args:
            is_growing: the process runs, so that the last line may be half of one.
        """
        if wait([self._soon(is_growing)], timeout_s).not_done:
            log.warning("the log of the attempt is not stored after %g s", timeout_s)

    def close(self) -> None:
        """Ends its thread, which stores nothing any more but what it is storing now."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def last_words(self) -> str:
        """Its last lines."""
        try:
            return "\n".join(shown(self._end(is_growing=False)).splitlines()[-LAST_LINES:])
        except OSError as error:
            return f"(the log cannot be read: {error})"

    def _soon(self, is_growing: bool) -> Future[None]:
        failure = "the log of the attempt cannot be stored"
        return self._executor.submit(copy_context().run, logged, failure, self._store_end, is_growing)

    def _store_end(self, is_growing: bool) -> None:
        end = self._end(is_growing)
        if end != self._stored:
            self._store(end)
            self._stored = end

    def _end(self, is_growing: bool) -> bytes:
        """Its last lines as UTF-8, LONGEST bytes of them at most. Raises OSError."""
        # Where the text is cut, so many characters may be a part of a credential, or of a character.
        margin = self.withheld.longest + 3
        with self._reading, self._path.open("rb") as file:
            begin = max(0, file.seek(0, 2) - LONGEST - 4 * margin)
            file.seek(begin)
            text = self.withheld(file.read().decode(errors="replace"))
        if begin:
            text = text[margin:]
        if is_growing:
            whole = text[: text.rfind("\n") + 1]
            # A line that is longer than all that is stored is shown while it grows.
            text = whole if whole or not begin else text[:-margin]
        content = text.encode()
        if not begin and len(content) <= LONGEST:
            return content
        end = content[-LONGEST:]
        return (end[end.find(b"\n") + 1 :] or end).decode(errors="ignore").encode()

    def _cut(self, size: int) -> None:
        """Leaves the second half of a log of this size; what the process appends goes on behind it. Raises OSError."""
        with self._reading, self._path.open("r+b") as file:
            file.seek(size - LOG_BYTES // 2)
            end = file.read()
            file.seek(0)
            file.write(b"[The beginning was deleted: the log was too long.]\n" + end[end.find(b"\n") + 1 :])
            file.truncate()
