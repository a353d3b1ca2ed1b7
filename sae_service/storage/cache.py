"""The activation cache: rows that jobs have computed, for other jobs to read, in a folder or in a bucket.

`<stream>/stream.json` says what a stream's rows are of and when it was last used; below `<stream>/<hook point>/<number type>/` are
its chunks, each an object that is written once. A name ends with the SHA-256 of what it names, so nothing else is trusted.
"""

import hashlib
import json
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from sae_service.errors import DamagedCheckpoint, NotFound, StorageFailure
from sae_service.storage.cached_stream import CachedStream
from sae_service.storage.objects import Storage

ABOUT = "stream.json"
IN_USE_S = 600
"""A stream that was used so lately makes no room for others: a job may be at work with it."""
MARKED_EVERY_S = 60
SPARED, SHARE_SPARED = 2 << 30, 20
"""So many bytes of a disk, or the 20th part of a small one, are left to everything else."""
ID = re.compile("[0-9a-f]{32}")


class ActivationCache:
    """Cached streams below one root, of which the least recently used one makes room for others.

    Args:
        limit: bytes that all of them may take together.
        project: whose streams are read and added; None: those of all.
    """

    def __init__(
        self, storage: Storage, limit: int, project: str | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._storage, self._limit, self.project, self._clock = storage, limit, project, clock
        self._marked: dict[str, float] = {}

    def streams(self) -> list[CachedStream]:
        """All streams, the one that was used last first. Raises StorageFailure."""
        sizes: dict[str, dict[str, int]] = defaultdict(dict)
        for key, size in self._storage.sizes("").items():
            stream, _, path = key.partition("/")
            if ID.fullmatch(stream):
                sizes[stream][path] = size
        found = [self._stream(stream, files) for stream, files in sizes.items()]
        return sorted(found, key=lambda stream: (-stream.used_at, stream.id))

    def _stream(self, stream: str, files: dict[str, int]) -> CachedStream:
        hooks = tuple(sorted({path.partition("/")[0] for path in files if "/" in path}))
        seen = {"id": stream, "hook_names": hooks, "n_bytes": sum(files.values())}
        try:
            return CachedStream.model_validate(self._about(stream) | seen)
        except (NotFound, ValidationError):
            return CachedStream.model_validate({**seen, "created_at": 0, "used_at": 0})

    def _about(self, stream: str) -> dict[str, Any]:
        """What a stream says of itself. Raises NotFound."""
        try:
            found = json.loads(self._storage.get(f"{stream}/{ABOUT}"))
        except ValueError as error:
            raise NotFound(f"{stream}/{ABOUT} is no JSON") from error
        return found if isinstance(found, dict) else {}

    def mark(self, stream: str, about: dict[str, str]) -> None:
        """Notes that a stream is in use, at most every MARKED_EVERY_S unless it has been deleted meanwhile. Raises StorageFailure.

        Args:
            about: its model and dataset.
        """
        now = self._clock()
        known: dict[str, Any] = {"created_at": int(now), "project": self.project}
        with suppress(NotFound):
            known |= self._about(stream)
            if now - self._marked.get(stream, 0) < MARKED_EVERY_S:
                return
        self._storage.replace(f"{stream}/{ABOUT}", json.dumps(known | about | {"used_at": int(now)}).encode())
        self._marked[stream] = now

    def chunks(self, folder: str) -> list[str]:
        """The names of the chunks in a folder, which is `<stream>/<hook point>/<number type>`. Raises StorageFailure."""
        return [key.removeprefix(f"{folder}/") for key in self._storage.keys(folder)]

    def read(self, folder: str, name: str) -> bytearray:
        """A chunk. Raises DamagedCheckpoint if it is gone, or damaged, and then it is gone; and StorageFailure."""
        found, key = bytearray(), f"{folder}/{name}"
        try:
            for piece in self._storage.checked(key, name.rpartition("-")[2]):
                found += piece
        except DamagedCheckpoint as error:
            if not found:
                raise DamagedCheckpoint(f"{key} has been deleted by another job or a user.") from error
            self._storage.remove(key)
            raise DamagedCheckpoint(f"{key} is damaged, and has been deleted.") from error
        return found

    def put(self, folder: str, name: str, content: bytes) -> None:
        """Adds a chunk, whose name goes on with its hash. Raises StorageFailure, also if there is no room for it."""
        self._make_room(folder.partition("/")[0], len(content))
        self._storage.put(f"{folder}/{name}-{hashlib.sha256(content).hexdigest()}", content)

    def _make_room(self, stream: str, n_bytes: int) -> None:
        if (root := self._storage.root) is not None:
            try:
                disk = shutil.disk_usage(root)
            except OSError as error:
                raise StorageFailure(f"cannot look at {root}: {error}") from error
            if disk.free - n_bytes < min(SPARED, disk.total // SHARE_SPARED):
                raise StorageFailure(f"the disk of {root} is almost full")
        if (left := self._limit - n_bytes - sum(self._storage.sizes("").values())) >= 0:
            return
        now = self._clock()
        idle = [other for other in self.streams() if other.id != stream and now - other.used_at >= IN_USE_S]
        if left + sum(other.n_bytes for other in idle) < 0:
            raise StorageFailure(f"it has no room left, with a limit of {self._limit} bytes")
        while left < 0:
            longest_unused = idle.pop()
            with suppress(NotFound):  # another job has been faster
                self.delete(longest_unused.id)
            left += longest_unused.n_bytes

    def delete(self, stream: str) -> None:
        """Deletes a stream. A job that reads it goes on with the model. Raises NotFound or StorageFailure."""
        if not ID.fullmatch(stream) or not self._storage.sizes(stream):
            raise NotFound(f"there is no cached stream {stream}")
        self._storage.delete(stream)
