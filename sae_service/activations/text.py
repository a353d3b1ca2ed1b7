"""A split of a dataset as the values of its text column, file by file, and the file and line that cannot be read.

Files of lines are read here, one line at a time; everything else by `datasets`, as it comes.
"""

import io
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import httpx

from sae_service.activations import dataset_files
from sae_service.errors import DamagedText, DataNotFound, InvalidSpec, translated
from sae_service.readable import EVERYWHERE, Roots
from sae_service.spec import DatasetSpec, fields, is_path

DOCUMENTS_AT_ONCE = 64
LOADERS = {
    ".jsonl": "json", ".ndjson": "json", ".json": "json", ".txt": "text", ".csv": "csv", ".parquet": "parquet", ".arrow": "arrow",
}  # fmt: skip
COMPRESSED = (".gz", ".xz", ".bz2", ".zst")
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
LONGEST_LINE = 1 << 28
"""Bytes, so that a file without line ends does not fill the memory."""


@runtime_checkable
class Text(Protocol):
    """The text column of a split. Shards and rows are counted from 0."""

    @property
    def n_shards(self) -> int:
        """How many parts it has, one after the other: a file each."""
        ...

    def groups(self, shard: int, skip: int) -> Iterator[list[Any]]:
        """The values of a shard from row `skip` on, DOCUMENTS_AT_ONCE at a time. Raises DataNotFound."""
        ...

    def place(self, shard: int, row: int) -> str:
        """How a message names a row."""
        ...


def load_arguments(spec: DatasetSpec, split: str, roots: Roots) -> dict[str, Any]:
    """What `datasets.load_dataset_builder` is to be called with. Raises DataNotFound for a path that is no dataset.

    A single file is the split that is trained on, whatever that is called. So is what `Dataset.save_to_disk` has written;
    a folder by `DatasetDict.save_to_disk` has a folder for each split.
    """
    if not is_path(spec.path):
        return {"path": spec.path, "name": spec.name, "revision": spec.revision}
    path = roots.inside(spec.path, fields.DATASET_PATH)
    if not path.exists():
        raise DataNotFound(f"there is no file or folder {path}", param=fields.DATASET_PATH)
    if not (path.is_file() or path.is_dir()):
        raise DataNotFound(f"{path} is no regular file and no folder", param=fields.DATASET_PATH)
    if (path / "dataset_dict.json").is_file():
        return {"path": "arrow", "data_files": {part.name: saved for part in sorted(path.iterdir()) if (saved := _saved(part))}}
    if not path.is_file() and not (path / "state.json").is_file():
        return {"path": str(path)}
    if split != spec.split:
        raise DataNotFound(
            f"{path.name} is one {'file' if path.is_file() else 'dataset'}, which has no split {split!r} beside the one that is "
            "trained on.",
            param=fields.HELD_OUT_SPLIT,
            hint="Leave held_out_split out to hold out a share of the documents, or name a folder with a file for each split.",
        )
    if not path.is_file():
        return {"path": "arrow", "data_files": {split: _saved(path)}}
    loader = loader_of(path.name)
    if loader is None:
        known = f"{', '.join(LOADERS)} ({', '.join(COMPRESSED)} too)"
        raise DataNotFound(f"{path.name} is none of {known}", param=fields.DATASET_PATH)
    return {"path": loader, "data_files": {split: str(path)}}


def _saved(folder: Path) -> list[str]:
    """The files that `save_to_disk` has written into a folder."""
    return sorted(str(file) for file in folder.glob("*.arrow"))


def loader_of(name: str) -> str | None:
    """What reads a file of this name: one of LOADERS, or None."""
    endings = Path(name).suffixes
    while endings and endings[-1] in COMPRESSED:
        endings.pop()
    return LOADERS.get(endings[-1]) if endings else None


def check_splits(spec: DatasetSpec) -> None:
    """Raises InvalidSpec if the text that is held out is the text that is trained on."""
    if spec.held_out_split == spec.split:
        raise InvalidSpec(
            f"must not be split ({spec.split!r}), which is trained on.",
            param=fields.HELD_OUT_SPLIT,
            hint="Leave it out to hold out a share of the documents.",
        )


def check_split(spec: DatasetSpec, split: str, known: Iterable[Any]) -> None:
    """Raises DataNotFound if a dataset has other splits only."""
    known = list(map(str, known))
    if split not in known:
        param = "/stream/dataset/split" if split == spec.split else fields.HELD_OUT_SPLIT
        raise DataNotFound(f"{spec.path} has no split {split!r}; it has {', '.join(known)}.", param=param)


def check_column(spec: DatasetSpec, columns: list[str]) -> None:
    """Raises InvalidSpec if the text column is not among `columns`."""
    if spec.column not in columns:
        raise InvalidSpec(
            f"{spec.path} has no column {spec.column!r}; it has {', '.join(columns)}.", param=fields.COLUMN
        )


def open_text(spec: DatasetSpec, split: str, roots: Roots = EVERYWHERE) -> Text:
    """The text column of a split. Raises DataNotFound or InvalidSpec."""
    with located(f"split {split!r} of {spec.path}", is_path(spec.path)):
        builder = dataset_files.builder(spec, load_arguments(spec, split, roots), roots)
        by_split = builder.config.data_files or {split: ()}
        check_split(spec, split, by_split)
        files = [str(file) for file in by_split[split]]
        if files and all(loader_of(file) in ("json", "text") and "::" not in file for file in files):
            return Lines(spec, files)
        if builder.name == "csv":
            # A document is what stands there, even if it is "NA" or "12".
            builder.config.na_filter, builder.config.converters = False, {spec.column: str}
        return Streamed(spec, builder.as_streaming_dataset(split=split), files)


class Lines:
    """Files of which each line is a document, as JSON or as it is; a file of JSON may be one list too."""

    def __init__(self, spec: DatasetSpec, files: list[str]) -> None:
        """Reads the first rows. Raises DataNotFound, or InvalidSpec if they do not have the column."""
        self._spec, self._files = spec, files
        first = list(islice(self._rows(0), DOCUMENTS_AT_ONCE))
        if first:
            check_column(spec, list(dict.fromkeys(name for row in first for name in row)))

    @property
    def n_shards(self) -> int:
        """One for each file."""
        return len(self._files)

    def groups(self, shard: int, skip: int) -> Iterator[list[Any]]:
        """See `Text`."""
        rows = islice(self._rows(shard), skip, None)
        while group := [row.get(self._spec.column) for row in islice(rows, DOCUMENTS_AT_ONCE)]:
            yield group

    def place(self, shard: int, row: int) -> str:
        """See `Text`."""
        return f"row {row + 1} of {self._files[shard]}"

    def _rows(self, shard: int) -> Iterator[dict[str, Any]]:
        """The rows of a file; empty lines of JSON are none."""
        import fsspec

        file = self._files[shard]
        is_json = loader_of(file) == "json"
        with located(file, is_path(file)) as at, fsspec.open(file, "rb", compression="infer") as opened:
            lines = io.BufferedReader(opened)  # pyright: ignore[reportArgumentType]
            at.line = 1
            if is_json and lines.peek(1)[:1] == b"[":
                yield from map(_row, json.load(lines))
                return
            while line := lines.readline(LONGEST_LINE):
                if len(line) == LONGEST_LINE:
                    raise ValueError(f"it is longer than {LONGEST_LINE >> 20} MiB")
                text = line.decode("utf-8-sig" if at.line == 1 else "utf-8").rstrip("\r\n")
                if not is_json:
                    yield {"text": text}
                elif text.strip():
                    yield _row(_parsed(text))
                at.line += 1


def _parsed(text: str) -> Any:
    """What a line of JSON says. Raises ValueError, also for half a character, which no tokenizer takes."""
    found = json.loads(text)
    if SURROGATE.search(text):
        json.dumps(found, ensure_ascii=False).encode()
    return found


def _row(value: Any) -> dict[str, Any]:
    """A row of a file of JSON; a string is a text. Raises ValueError."""
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


class Streamed:
    """What `datasets` reads."""

    def __init__(self, spec: DatasetSpec, dataset: Any, files: list[str]) -> None:
        """Finds the columns. Raises InvalidSpec if the one of the text is not among them."""
        self._spec, self._files = spec, files
        check_column(spec, dataset.column_names or list(next(iter(dataset), {spec.column: None})))
        self._dataset = dataset.select_columns([spec.column])

    @property
    def n_shards(self) -> int:
        """As `datasets` divides it."""
        return self._dataset.num_shards

    def groups(self, shard: int, skip: int) -> Iterator[list[Any]]:
        """See `Text`. The state that `datasets` keeps of itself depends on where reading began; rows counted do not."""
        with located(self._name(shard), is_path(self._spec.path)):
            for batch in self._dataset.shard(self.n_shards, shard).skip(skip).iter(batch_size=DOCUMENTS_AT_ONCE):
                yield batch[self._spec.column]

    def place(self, shard: int, row: int) -> str:
        """See `Text`."""
        return f"row {row + 1} of {self._name(shard)}"

    def _name(self, shard: int) -> str:
        return self._files[shard] if len(self._files) == self.n_shards else f"part {shard + 1} of {self._spec.path}"


@dataclass
class Place:
    """How far a file has been read: the number of the line in hand, or 0 where lines are not counted."""

    line: int = 0


@contextmanager
def located(name: str, is_local: bool) -> Iterator[Place]:
    """Makes errors that name the file and the line of whatever a reader of foreign files raises.

    Raises:
        DamagedText: the file holds what cannot be read, which will not change.
        DataNotFound: it may be there another time.
    """
    at = Place()

    def translate(error: Exception) -> DataNotFound:
        reason = str(error)
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.msg.removesuffix(' at')} at column {error.colno}"
        where = f"line {at.line + getattr(error, 'lineno', 1) - 1} of {name}" if at.line else name
        of_the_moment = isinstance(error, OSError) and (error.errno is not None or not is_local)
        kind = DataNotFound if of_the_moment or isinstance(error, httpx.HTTPError) else DamagedText
        hint = "" if is_local else "A hub dataset needs a network; a folder's name starts with '/', '.' or '~'."
        return kind(f"{where} cannot be read: {reason or type(error).__name__}", fields.DATASET_PATH, hint)

    with translated(translate):
        yield at
