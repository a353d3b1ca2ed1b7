"""From text to packed tokens, with a cursor from which reading goes on exactly.

Documents are packed into rows of `context_size`: each row starts with BOS, and BOS stands between the documents of
a row. Source: Lieberum et al. 2024, "Gemma Scope", arXiv:2408.05147, section 3.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from sae_service.activations import dataset_files
from sae_service.errors import DataNotFound, InvalidSpec, SAEServiceError
from sae_service.readable import EVERYWHERE, Roots
from sae_service.schema import Frozen
from sae_service.spec import DatasetSpec, is_path

DOCUMENTS_AT_ONCE = 64
LOADERS = {".jsonl": "json", ".json": "json", ".txt": "text", ".parquet": "parquet"}
Part = Literal["train", "held_out"]
Encode = Callable[[list[str]], list[list[int]]]


class Cursor(Frozen):
    """A place in the packed text: all that is needed to go on reading there.

    A group of documents begins at document `documents` of shard `shard` of the split, after `epoch` whole readings;
    `unfinished` holds the tokens of the row that is not full yet at that place. `rows_served` packed rows of the group
    have been handed out.
    """

    epoch: int = 0
    shard: int = 0
    documents: int = 0
    unfinished: tuple[int, ...] = ()
    rows_served: int = 0


def is_held_out(document: str, share: float) -> bool:
    """Whether a document belongs to the held-out share: a property of its text alone, so copies stay together."""
    digest = hashlib.blake2b(document.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def load_arguments(spec: DatasetSpec, split: str, roots: Roots) -> dict[str, Any]:
    """What `datasets.load_dataset` is to be called with. Raises DataNotFound for a path that is no dataset.

    A single file is the split that is trained on, whatever that is called.
    """
    if not is_path(spec.path):
        return {"path": spec.path, "name": spec.name, "revision": spec.revision}
    path = roots.inside(spec.path, "/stream/dataset/path")
    if not path.exists():
        raise DataNotFound(f"there is no file or folder {path}", param="/stream/dataset/path")
    if path.is_dir():
        return {"path": str(path)}
    if not path.is_file():
        raise DataNotFound(f"{path} is no regular file and no folder", param="/stream/dataset/path")
    endings = [ending for ending in path.suffixes if ending in LOADERS]
    if not endings:
        known = ", ".join(LOADERS)
        raise DataNotFound(f"{path.name} is none of {known}", param="/stream/dataset/path")
    if split != spec.split:
        raise DataNotFound(
            f"{path.name} is one file, which has no split {split!r} beside the one that is trained on.",
            param="/stream/dataset/held_out_split",
            hint="Leave held_out_split out to hold out a share of the documents, or name a folder with a file for each split.",
        )
    return {"path": LOADERS[endings[-1]], "data_files": {split: str(path)}}


def check_splits(spec: DatasetSpec) -> None:
    """Raises InvalidSpec if the text that is held out is the text that is trained on."""
    if spec.held_out_split == spec.split:
        raise InvalidSpec(
            f"must not be split ({spec.split!r}), which is trained on.",
            param="/stream/dataset/held_out_split",
            hint="Leave it out to hold out a share of the documents.",
        )


def open_dataset(spec: DatasetSpec, split: str, roots: Roots) -> Any:
    """The dataset's `split` as a stream of its text column. Raises DataNotFound or InvalidSpec."""
    try:
        dataset: Any = dataset_files.builder(spec, load_arguments(spec, split, roots), roots).as_streaming_dataset(split=split)
        columns = dataset.column_names or list(next(iter(dataset), {}))
    except (SAEServiceError, MemoryError):
        raise
    except Exception as error:
        hint = "A hub dataset needs a network; a folder's name starts with '/', '.' or '~'."
        message = f"cannot read split {split!r} of {spec.path}: {error}"
        raise DataNotFound(message, param="/stream/dataset", hint="" if is_path(spec.path) else hint) from error
    check_column(spec, columns)
    return dataset.select_columns([spec.column])


def check_column(spec: DatasetSpec, columns: list[str]) -> None:
    """Raises InvalidSpec if the text column is not among `columns`."""
    if spec.column not in columns:
        raise InvalidSpec(
            f"{spec.path} has no column {spec.column!r}; it has {', '.join(columns)}.", param="/stream/dataset/column"
        )


@dataclass
class PackedTokens:
    """Iterates over batches of packed rows, each with the cursor of the next one."""

    spec: DatasetSpec
    part: Part
    encode: Encode
    bos: int
    context_size: int
    prompts: int
    repeat: bool
    roots: Roots = EVERYWHERE

    def documents(self, batch: dict[str, list[Any]]) -> list[str]:
        """The non-empty texts of a group that belong to this part."""
        texts = [text for text in batch[self.spec.column] if isinstance(text, str) and text]
        if self.spec.held_out_split is not None:
            return texts
        share = self.spec.held_out_share
        return [text for text in texts if is_held_out(text, share) == (self.part == "held_out")]

    def pack(self, unfinished: list[int], texts: list[str]) -> tuple[list[list[int]], list[int]]:
        """Full rows, and the tokens of the row that is not full yet."""
        flat = list(unfinished)
        for ids in self.encode(texts) if texts else []:
            flat.append(self.bos)
            flat.extend(ids)
        rows: list[list[int]] = []
        start = 0
        while len(flat) - start >= self.context_size:
            rows.append(flat[start : start + self.context_size])
            start += self.context_size
            # The next row must start with BOS; where a document ends exactly here, its own separator serves.
            if start < len(flat) and flat[start] != self.bos:
                start -= 1
                flat[start] = self.bos
        return rows, flat[start:]

    def groups(self, cursor: Cursor) -> Iterator[tuple[list[list[int]], Cursor]]:
        """Rows of each group of documents, with the cursor of the group's start."""
        split = self.spec.split
        if self.part == "held_out" and self.spec.held_out_split is not None:
            split = self.spec.held_out_split
        unfinished = list(cursor.unfinished)
        at, is_whole = cursor, (cursor.shard, cursor.documents) == (0, 0)
        while True:
            found = False
            for texts, group in self.texts(split, at):
                start = group.model_copy(update={"unfinished": tuple(unfinished), "rows_served": 0})
                rows, unfinished = self.pack(unfinished, texts)
                found = found or bool(rows)
                yield rows, start
            if not self.repeat:
                return
            if not found and is_whole:
                message = f"split {split!r} of {self.spec.path} is shorter than one row of {self.context_size} tokens"
                raise DataNotFound(message, param="/stream/dataset")
            at, is_whole = Cursor(epoch=at.epoch + 1), True

    def texts(self, split: str, start: Cursor) -> Iterator[tuple[list[str], Cursor]]:
        """The texts of each group of documents from a group on to the end of the split, with where the group begins.

        Shard by shard, and groups are counted from the shard's beginning. So they are the same wherever reading starts,
        which the state that `datasets` keeps of itself is not.
        """
        dataset = open_dataset(self.spec, split, self.roots)
        documents = start.documents
        for shard in range(start.shard, dataset.num_shards):
            rest = dataset.shard(dataset.num_shards, shard).skip(documents)
            for batch in rest.iter(batch_size=DOCUMENTS_AT_ONCE):
                yield self.documents(batch), start.model_copy(update={"shard": shard, "documents": documents})
                documents += len(batch[self.spec.column])
            documents = 0

    def read(self, cursor: Cursor) -> Iterator[tuple[Int[np.ndarray, "prompts context_size"], Cursor]]:
        """Batches of `prompts` rows from `cursor` on; without `repeat` the last one may have fewer.

        Each comes with the cursor of its own start, from which reading again yields the same batch.
        """
        skip = cursor.rows_served
        pending: list[list[int]] = []
        pending_start = cursor
        for rows, group in self.groups(cursor):
            for index, row in enumerate(rows):
                if skip:
                    skip -= 1
                    continue
                if not pending:
                    pending_start = group.model_copy(update={"rows_served": index})
                pending.append(row)
                if len(pending) == self.prompts:
                    yield np.asarray(pending, dtype=np.int32), pending_start
                    pending = []
        if pending:
            yield np.asarray(pending, dtype=np.int32), pending_start
