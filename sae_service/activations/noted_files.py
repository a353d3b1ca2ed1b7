"""The files of this machine that decide the rows of a stream: what is in them, and whether they are still as they were noted."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from sae_service.activations import dataset_files, model_files, text
from sae_service.errors import Stopped
from sae_service.readable import Roots
from sae_service.spec import DatasetSpec, ModelSpec, is_path

PIECE = 1 << 24
State = tuple[int, int, int]
"""The size of a file, when it was changed, and its number: those of another file in its place are others."""


def of_model(spec: ModelSpec, roots: Roots) -> "NotedFiles | None":
    """The files of a model; None for one of a hub. Raises as `model_files.checked_folder` does."""
    return NotedFiles(spec.name, model_files.checked_files(spec.name, roots)[1], roots) if is_path(spec.name) else None


def of_text(spec: DatasetSpec, roots: Roots) -> "NotedFiles | None":
    """The files of a dataset; None for one of a hub. Raises DataNotFound or InvalidSpec."""
    if not is_path(spec.path):
        return None
    arguments = text.load_arguments(spec, spec.split, roots)
    by_split = (dataset_files.builder(spec, arguments, roots).config.data_files or {}).values()
    named = (Path(dataset_files.local(str(file))) for files in by_split for file in files)
    return NotedFiles(spec.path, named, roots)


class NotedFiles:
    """A file, or all files of a folder that may be read, and those that it names: outside, or behind a link to a folder."""

    def __init__(self, name: str, named: Iterable[Path], roots: Roots) -> None:
        """Notes them as they are now."""
        self._given = Path(name).expanduser()
        self._path, self._named, self._roots = self._given.resolve(), tuple(named), roots
        self._files = self._found()
        self._states = self._now()

    def _found(self) -> dict[str, Path]:
        """The files, by their name in the folder. One alone is read by its ending, whatever the link is called that leads to it."""
        if not self._path.is_dir():
            return {"".join(self._path.suffixes): self._path}
        files = {*self._path.rglob("*"), *self._named}
        return {os.path.relpath(file, self._path): file for file in sorted(files) if self._roots.hold(file) and file.is_file()}

    def _now(self) -> dict[Path, State | None]:
        # There may be a new file beside one that is named.
        beside = {file.parent for file in self._named if not file.parent.resolve().is_relative_to(self._path)}
        files = {*self._found().values(), *(beside if self._path.is_dir() else ())}
        return {file: _state(file) for file in files}

    def changed(self) -> Path | None:
        """One that is not what it was when they were noted, is gone, or is new."""
        if self._given.resolve() != self._path:
            return self._given
        now = self._now()
        others = {file for file in {*now, *self._states} if now.get(file) != self._states.get(file)}
        return min(others, default=None)

    def sha256(self, ends_here: Callable[[], bool]) -> str:
        """A hash of their names and their content.

        Args:
            ends_here: asked with every piece of a file whether to stop.

        Raises:
            Stopped: it should stop.
            OSError: one cannot be read.
        """
        digest = hashlib.sha256()
        for name, file in sorted(self._files.items()):
            of_file = hashlib.sha256()
            for piece in _pieces(file):
                if ends_here():
                    raise Stopped
                of_file.update(piece)
            digest.update(f"{json.dumps(name)} {of_file.hexdigest()}\n".encode())
        return digest.hexdigest()


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as content:
        yield from iter(partial(content.read, PIECE), b"")


def _state(file: Path) -> State | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino
