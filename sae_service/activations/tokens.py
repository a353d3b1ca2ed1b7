"""From text to packed tokens, with a cursor from which reading goes on exactly.

Documents are packed into rows of `context_size`: each row starts with BOS, and BOS stands between the documents of
a row. Source: Lieberum et al. 2024, "Gemma Scope", arXiv:2408.05147, section 3. Rows that are kept as they are given
get no BOS.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int

from sae_service.activations.documents import Documents, Part, Tokenizing, no_text
from sae_service.activations.text import open_text
from sae_service.errors import DataNotFound, InvalidSpec
from sae_service.readable import EVERYWHERE, Roots
from sae_service.schema import Frozen
from sae_service.spec import DatasetSpec


class Cursor(Frozen):
    """A place in the packed text: all that is needed to go on reading there.

    A group of documents begins at document `documents` of shard `shard` of the split, after `epoch` whole readings;
    `unfinished` holds the tokens of the row that is not full yet at that place (`~id` for one that is not trained on).
    `rows_served` packed rows of the group have been handed out.
    """

    epoch: int = 0
    shard: int = 0
    documents: int = 0
    unfinished: tuple[int, ...] = ()
    rows_served: int = 0


@dataclass(frozen=True)
class Prompts:
    """Rows of tokens, and which positions the text itself has trained on: all but the turns that a conversation leaves out."""

    tokens: Int[np.ndarray, "prompts context_size"]
    trained: Bool[np.ndarray, "prompts context_size"]


def _prompts(rows: list[list[int]]) -> Prompts:
    signed = np.asarray(rows, dtype=np.int32)
    return Prompts(np.where(signed < 0, ~signed, signed), signed >= 0)


@dataclass
class PackedTokens:
    """Iterates over batches of rows, each with the cursor of the next one."""

    spec: DatasetSpec
    part: Part
    model: Tokenizing
    context_size: int
    prompts: int
    repeat: bool
    roots: Roots = EVERYWHERE

    @cached_property
    def documents(self) -> Documents:
        """What makes tokens of the values of the text column. Raises InvalidSpec if the model cannot."""
        return Documents(self.spec, self.part, self.model, self.context_size)

    @property
    def split(self) -> str:
        """The split that is read."""
        named = self.spec.held_out_split
        return named if self.part == "held_out" and named is not None else self.spec.split

    def pack(self, unfinished: list[int], documents: list[list[int]]) -> tuple[list[list[int]], list[int]]:
        """Full rows, and the tokens of the row that is not full yet. A document that begins with BOS gets no second one."""
        if self.spec.rows == "kept":
            return [ids[: self.context_size] for ids in documents], []
        bos = self.model.bos
        is_bos = (bos, ~bos)
        flat = list(unfinished)
        for ids in documents:
            if not ids or ids[0] not in is_bos:
                flat.append(bos)
            flat.extend(ids)
        rows: list[list[int]] = []
        start = 0
        while len(flat) - start >= self.context_size:
            rows.append(flat[start : start + self.context_size])
            start += self.context_size
            # The next row must start with BOS; where a document ends exactly here, its own separator serves.
            if start < len(flat) and flat[start] not in is_bos:
                start -= 1
                flat[start] = bos
        return rows, flat[start:]

    def groups(self, cursor: Cursor) -> Iterator[tuple[list[list[int]], Cursor]]:
        """Rows of each group of documents, with the cursor of the group's start."""
        unfinished = list(cursor.unfinished)
        at, is_whole = cursor, (cursor.shard, cursor.documents) == (0, 0)
        while True:
            found = False
            for documents, group in self.tokens(at):
                start = group.model_copy(update={"unfinished": tuple(unfinished), "rows_served": 0})
                rows, unfinished = self.pack(unfinished, documents)
                found = found or bool(rows)
                yield rows, start
            if not self.repeat:
                return
            if not found and is_whole:
                if not self.documents.n_seen:
                    raise no_text(self.spec, self.documents, self.split)
                holds = f"is shorter than one row of {self.context_size} tokens" if self.documents.n_chosen else "has no text"
                raise DataNotFound(f"split {self.split!r} of {self.spec.path} {holds}", param="/stream/dataset")
            at, is_whole = Cursor(epoch=at.epoch + 1), True

    def tokens(self, start: Cursor) -> Iterator[tuple[list[list[int]], Cursor]]:
        """The documents of each group from a group on to the end of the split, with where the group begins.

        Shard by shard, and groups are counted from the shard's beginning. So they are the same wherever reading starts.
        """
        text = open_text(self.spec, self.split, self.roots)
        n_before = start.documents
        for shard in range(start.shard, text.n_shards):
            for values in text.groups(shard, n_before):
                found = self.documents.tokens(values, lambda index, shard=shard, first=n_before: text.place(shard, first + index))
                yield found, start.model_copy(update={"shard": shard, "documents": n_before})
                n_before += len(values)
            n_before = 0

    def read(self, cursor: Cursor) -> Iterator[tuple[Prompts, Cursor]]:
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
                    yield _prompts(pending), pending_start
                    pending = []
        if pending:
            yield _prompts(pending), pending_start


def all_left_out(message: str, spec: DatasetSpec) -> InvalidSpec:
    """The error for text of which no position is trained on or measured."""
    param = "/stream/exclude" if spec.train_on == "all" else "/stream/dataset/train_on"
    return InvalidSpec(message, param, "Leave out fewer tokens.")
