"""Files of finished writes, in a folder or in an S3 bucket, through one small interface.

Nothing is ever overwritten but a log: a set of files is published once under a prefix of its own, its manifest last, and
readers trust only what a manifest lists.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, from_url

from sae_service import tracing
from sae_service.errors import DamagedCheckpoint, NotFound, Stopped, StorageFailure

MANIFEST = "manifest.json"
PART, AT_ONCE = 8 << 20, 4
"""What is longer travels in parts of so many bytes, so many at once: a request is over after 30 s, however long it is."""


@dataclass(frozen=True)
class Parts:
    """Content that is never in memory as a whole: how long it is, and its parts, one after the other."""

    size: int
    parts: Callable[[], Iterator[bytes | memoryview]]

    def __len__(self) -> int:
        return self.size

    def pieces(self) -> Iterator[memoryview]:
        """The parts, none longer than PART. Raises ValueError at the end if there were not `size` bytes."""
        length = 0
        for part in self.parts():
            for start in range(0, len(part), PART):
                yield memoryview(part)[start : start + PART]
            length += len(part)
        if length != self.size:
            raise ValueError(f"there were {length} bytes where {self.size} had been promised")


Content = bytes | Parts


class Storage:
    """Objects by key below one root."""

    def __init__(self, url: str) -> None:
        """Opens the storage at `file:///folder` (made if absent) or `s3://bucket/prefix`."""
        self.root = Path(unquote(urlparse(url).path)) if url.startswith("file:") else None
        try:
            if self.root is not None:
                self.root.mkdir(parents=True, exist_ok=True)
                self._store = LocalStore(self.root)
            else:
                self._store = from_url(url)
        except (BaseError, OSError, ValueError) as error:
            raise StorageFailure(f"cannot open the storage {url}: {_said(error)}") from error

    def put(self, key: str, content: Content) -> str:
        """Writes a new object, durably, and returns its SHA-256.

        A store takes parts without a look at what is there: long objects rely on their key, which is new, and so does a
        folder where they come as `Parts`. Raises StorageFailure if there is another one or it cannot be written.
        """
        if isinstance(content, Parts):
            if len(content) > PART:
                return self._put_parts(key, content)
            content = b"".join(content.pieces())
        in_parts = self.root is None and len(content) > PART
        try:
            mode = "overwrite" if in_parts else "create"
            obstore.put(self._store, key, content, mode=mode, chunk_size=PART, max_concurrency=AT_ONCE)
        except AlreadyExistsError as error:
            # A request that was carried out and answered with an error has been repeated if this is what it wrote.
            if not self._has(key, content):
                raise StorageFailure(f"{key} exists already, or is being written") from error
        except (BaseError, OSError) as error:
            raise StorageFailure(f"cannot write {key}: {_said(error)}") from error
        self._flush(key)
        return hashlib.sha256(content).hexdigest()

    def replace(self, key: str, content: bytes) -> None:
        """Writes a short object in place of one that may be there; whoever reads it finds either. Raises StorageFailure."""
        try:
            obstore.put(self._store, key, content, mode="overwrite", use_multipart=False)
        except (BaseError, OSError) as error:
            raise StorageFailure(f"cannot write {key}: {_said(error)}") from error

    def _put_parts(self, key: str, content: Parts) -> str:
        sha256 = hashlib.sha256()

        def hashed() -> Iterator[memoryview]:
            for piece in content.pieces():
                sha256.update(piece)
                yield piece

        try:
            obstore.put(self._store, key, hashed(), mode="overwrite", chunk_size=PART, max_concurrency=AT_ONCE)
        except (BaseError, OSError) as error:
            raise StorageFailure(f"cannot write {key}: {_said(error)}") from error
        self._flush(key)
        return sha256.hexdigest()

    def _flush(self, key: str) -> None:
        """Makes a file and the entries of its folders durable: the store renames but does not flush."""
        if self.root is None:
            return
        path = self.root / key
        try:
            for target in (path, *path.parents[: len(path.relative_to(self.root).parts)]):
                descriptor = os.open(target, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        except OSError as error:
            raise StorageFailure(f"cannot write {key}: {_said(error)}") from error

    def _has(self, key: str, content: bytes) -> bool:
        try:
            return self.get(key) == content
        except NotFound:
            return False

    def get(self, key: str) -> bytes:
        """The whole object. Raises NotFound or StorageFailure."""
        try:
            found = obstore.get(self._store, key)
            if self.root is None and found.meta["size"] > PART:
                return b"".join(self.stream(key, 0, found.meta["size"], PART))
            return bytes(found.bytes())
        except (FileNotFoundError, ValueError) as error:  # ValueError: a key that no object can have
            raise NotFound(f"there is no file {key}") from error
        except (BaseError, OSError) as error:
            raise StorageFailure(f"cannot read {key}: {_said(error)}") from error

    def size(self, key: str) -> int:
        """Length of the object in bytes. Raises NotFound."""
        try:
            return obstore.head(self._store, key)["size"]
        except FileNotFoundError as error:
            raise NotFound(f"there is no file {key}") from error
        except (BaseError, OSError) as error:
            raise StorageFailure(f"cannot read {key}: {_said(error)}") from error

    def stream(self, key: str, start: int, end: int, chunk: int = 1 << 20) -> Iterator[bytes]:
        """Bytes `start` up to but not including `end`, in pieces."""
        for position in range(start, end, chunk):
            try:
                yield bytes(obstore.get_range(self._store, key, start=position, end=min(position + chunk, end)))
            except (BaseError, OSError) as error:
                raise StorageFailure(f"cannot read {key}: {_said(error)}") from error

    def ranges(self, key: str, wanted: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of some ranges, each from a start up to but not including an end; neighbours come in one request."""
        if not wanted:
            return []
        try:
            starts, ends = zip(*wanted, strict=True)
            return [bytes(part) for part in obstore.get_ranges(self._store, key, starts=starts, ends=ends)]
        except FileNotFoundError as error:
            raise NotFound(f"there is no file {key}") from error
        except (BaseError, OSError) as error:
            raise StorageFailure(f"cannot read {key}: {_said(error)}") from error

    def keys(self, prefix: str) -> list[str]:
        """Keys of all objects below a prefix, sorted."""
        try:
            return sorted(item["path"] for batch in obstore.list(self._store, prefix) for item in batch)
        except (BaseError, OSError) as error:
            raise StorageFailure(f"cannot list {prefix}: {_said(error)}") from error

    def sizes(self, prefix: str) -> dict[str, int]:
        """Bytes of all objects below a prefix, by key; in a folder also of what a cut-off write has left behind."""
        if self.root is not None:
            found = {}
            for folder, _, names in os.walk(self.root / prefix):
                for path in (Path(folder) / name for name in names):
                    with suppress(OSError):  # another process may delete it meanwhile
                        found[path.relative_to(self.root).as_posix()] = path.stat().st_size
            return found
        try:
            return {item["path"]: item["size"] for batch in obstore.list(self._store, prefix) for item in batch}
        except (BaseError, OSError) as error:
            raise StorageFailure(f"cannot list {prefix}: {_said(error)}") from error

    def folders(self, prefix: str) -> set[str]:
        """What there is directly below a prefix, with anything below it: also what a cut-off write has left behind."""
        try:
            return set(obstore.list_with_delimiter(self._store, prefix)["common_prefixes"])
        except (BaseError, OSError) as error:
            raise StorageFailure(f"cannot list {prefix}: {_said(error)}") from error

    def delete(self, prefix: str) -> None:
        """Deletes everything below a prefix, its manifest first, so that no reader trusts a half-deleted set."""
        keys = self.keys(prefix)
        manifest = f"{prefix}/{MANIFEST}"
        for group in ([manifest] if manifest in keys else [], [key for key in keys if key != manifest]):
            if group:
                self._delete_all(group)
        if self.root is not None and (self.root / prefix).is_dir():
            # Empty folders, and what a put that was killed in the middle left behind.
            shutil.rmtree(self.root / prefix, ignore_errors=True)

    def remove(self, key: str) -> None:
        """Deletes one object, which may be gone already. Raises StorageFailure."""
        self._delete_all([key])

    def _delete_all(self, keys: list[str]) -> None:
        try:
            obstore.delete(self._store, keys)
        except FileNotFoundError:
            return
        except (BaseError, OSError) as error:
            raise StorageFailure(f"cannot delete {keys[0]}: {_said(error)}") from error

    @tracing.traced("checkpoint")
    def publish(self, prefix: str, files: Mapping[str, Content] | Iterator[tuple[str, Content]]) -> list[dict[str, str | int]]:
        """Writes files below a new prefix, in the order in which they come, and their manifest last.

        Returns the manifest's entries, sorted by path. A file is let go of before the next one is asked for. If whoever makes
        them is Stopped, none of them stays.
        """
        entries = list[dict[str, str | int]]()
        try:
            for path, content in files if isinstance(files, Iterator) else files.items():
                entries.append({"path": path, "size": len(content), "sha256": self.put(f"{prefix}/{path}", content)})
                del content
        except Stopped:
            self.delete(prefix)
            raise
        entries.sort(key=lambda entry: str(entry["path"]))
        self.put(f"{prefix}/{MANIFEST}", json.dumps({"files": entries}, indent=1).encode())
        return entries

    def has_published(self, prefix: str) -> bool:
        """Whether a set of files was published below a prefix, readable or not. Raises StorageFailure."""
        try:
            return self.size(f"{prefix}/{MANIFEST}") >= 0
        except NotFound:
            return False

    def hashes(self, prefix: str) -> dict[str, str]:
        """The SHA-256 of each file of a published set, by path. Raises DamagedCheckpoint without a readable manifest."""
        try:
            listed = json.loads(self.get(f"{prefix}/{MANIFEST}"))["files"]
            return {str(entry["path"]): entry["sha256"] for entry in listed}
        except (NotFound, ValueError, KeyError, TypeError) as error:
            raise DamagedCheckpoint(f"{prefix} has no readable manifest") from error

    def checked(self, key: str, sha256: str) -> Iterator[bytes]:
        """A whole object in pieces. Raises DamagedCheckpoint after the last one if they are not what `sha256` says."""
        try:
            size = self.size(key)
        except NotFound as error:
            raise DamagedCheckpoint(f"{key} is missing") from error
        found = hashlib.sha256()
        for piece in self.stream(key, 0, size, PART):
            found.update(piece)
            yield piece
            # Not beside the next one.
            del piece
        if found.hexdigest() != sha256:
            raise DamagedCheckpoint(f"{key} does not match its manifest")

    def read(self, prefix: str, hashes: Mapping[str, str]) -> dict[str, bytes]:
        """The files below `prefix` that `hashes` names, by path. Raises DamagedCheckpoint if one is not what it says."""
        files: dict[str, bytes] = {}
        for path, sha256 in hashes.items():
            try:
                files[path] = self.get(f"{prefix}/{path}")
            except NotFound as error:
                raise DamagedCheckpoint(f"{prefix}/{path} is missing") from error
            if hashlib.sha256(files[path]).hexdigest() != sha256:
                raise DamagedCheckpoint(f"{prefix}/{path} does not match its manifest")
        return files


def _said(error: Exception) -> str:
    """What an error says to a person: the store adds its own structures below."""
    return str(error).split("\n\n")[0]
