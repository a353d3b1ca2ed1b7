"""What the values of a text column mean: texts, lists of token ids, or conversations. All of them become lists of tokens.

A token that is not trained on is written as `~id`, so a row, and a place within it, stays a list of integers.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sae_service.activations import chat
from sae_service.errors import DataNotFound, InvalidSpec
from sae_service.spec import DatasetSpec, fields

Part = Literal["train", "held_out"]
Place = Callable[[int], str]
"""How a message names the n-th value of a group."""
SAID = {"text": "strings", "ids": "lists of token ids", "messages": "lists of messages with role and content"}


class Tokenizing(ABC):
    """What a language model knows of tokens. `tokenizer` is None if it has none; then only `n_vocab` is known."""

    tokenizer: Any

    @property
    @abstractmethod
    def bos(self) -> int:
        """The token that starts a row."""

    @property
    @abstractmethod
    def n_vocab(self) -> int:
        """How many tokens it has; ids are less than that."""

    @abstractmethod
    def encode(self, documents: list[str]) -> list[list[int]]:
        """Token ids of each document, without special tokens."""


def is_held_out(document: str, share: float) -> bool:
    """Whether a document belongs to the held-out share: a property of its text alone, so copies stay together."""
    digest = hashlib.blake2b(document.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def kind_of(value: Any) -> str | None:
    """What a value is: "text", "ids", "messages" (an empty list is all of them), or None if no document can be made of it."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, list):
        if all(type(item) is int for item in value):
            return "ids"
        if all(isinstance(item, dict) and isinstance(item.get("role"), str) and "content" in item for item in value):
            return "messages"
    return None


def described(value: Any) -> str:
    """A value's type in words."""
    kind = kind_of(value)
    if kind is not None:
        return SAID[kind]
    if isinstance(value, list) and value:
        others = sorted({type(item).__name__ for item in value})
        return f"lists of {' and '.join(others)}"
    return f"values of type {type(value).__name__}"


def check_kind(spec: DatasetSpec, value: Any, where: str) -> str:
    """The kind of a value that is to be a document. Raises InvalidSpec if the spec is not about values of this kind.

    Args:
        where: the column or the row in which the value stands.
    """
    kind = kind_of(value)
    if kind is None or (kind == "messages") != spec.chat or (kind == "text" and spec.rows == "kept"):
        wanted = SAID["messages" if spec.chat else "ids" if spec.rows == "kept" else "text"]
        if not spec.chat and spec.rows != "kept":
            wanted += f" or {SAID['ids']}"
        holds = f"{where} holds {described(value)}; {wanted} are needed."
        raise InvalidSpec(holds, param=fields.COLUMN, hint=_hint(spec, kind))
    return kind


def _hint(spec: DatasetSpec, kind: str | None) -> str:
    """How values of a kind could be read, or where others may be."""
    if kind == "messages":
        return "Conversations are read with dataset.chat: true."
    if kind is None:
        return ""
    given = {"chat": spec.chat, "train_on": spec.train_on != "all", "rows": spec.rows == "kept" and kind == "text"}
    listed = " and ".join(name for name, is_given in given.items() if is_given)
    return f"Name another column, or leave {listed} out."


def no_text(spec: DatasetSpec, documents: "Documents", split: str) -> DataNotFound:
    """What to say of a split in which no document was seen."""
    rows = "its rows are NULL or empty" if documents.n_null else "its rows are empty, or there are none"
    holds = f"split {split!r} of {spec.path} has no text in column {spec.column!r}: {rows}."
    return DataNotFound(holds, fields.COLUMN, "Name the column that holds the text, or another split.")


@dataclass
class Documents:
    """Makes tokens of groups of values.

    `n_null` counts the values that were missing, `n_seen` the documents, `n_chosen` those of them that belong to this part.
    """

    spec: DatasetSpec
    part: Part
    model: Tokenizing
    context_size: int
    n_null: int = 0
    n_seen: int = 0
    n_chosen: int = 0
    _kind: str | None = None

    def __post_init__(self) -> None:
        if self.spec.chat:
            chat.check_template(self.model.tokenizer, self.spec.train_on)

    def tokens(self, values: Sequence[Any], place: Place) -> list[list[int]]:
        """The tokens of the documents that belong to this part. Empty values and missing ones are none.

        Raises:
            InvalidSpec: a value is no document of the kind that the others are, or names tokens that the model does not have.
        """
        chosen = [(index, value) for index, value in enumerate(values) if self._is_chosen(value, index, place)]
        if self._kind == "text":
            return self.model.encode([value for _, value in chosen]) if chosen else []
        if self._kind == "ids":
            return [self._checked(value, place(index)) for index, value in chosen]
        return self._conversations(chosen, place)

    def _is_chosen(self, value: Any, index: int, place: Place) -> bool:
        self.n_null += value is None
        if value is None or value == "" or value == []:
            return False
        kind = check_kind(self.spec, value, place(index))
        if self._kind not in (None, kind):
            raise InvalidSpec(
                f"{place(index)} holds {SAID[kind]}, and rows before it {SAID[self._kind]}.", param=fields.COLUMN
            )
        self._kind = kind
        self.n_seen += 1
        is_chosen = self.spec.held_out_split is not None or self._is_of_part(value, place(index))
        self.n_chosen += is_chosen
        return is_chosen

    def _is_of_part(self, value: Any, where: str) -> bool:
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
        return is_held_out(text, self.spec.held_out_share) == (self.part == "held_out")

    def _checked(self, ids: list[int], where: str) -> list[int]:
        """Token ids that the model has, and enough of them for a row if a row is what they are to be."""
        for token in (min(ids), max(ids)):
            if not 0 <= token < self.model.n_vocab:
                raise InvalidSpec(
                    f"{where} holds token {token}; the model's are 0 to {self.model.n_vocab - 1}.",
                    param=fields.COLUMN,
                    hint="The ids must come from this model's tokenizer.",
                )
        if self.spec.rows == "kept" and len(ids) < self.context_size:
            raise InvalidSpec(
                f"{where} has {len(ids)} tokens, fewer than context_size ({self.context_size}).",
                param="/stream/dataset/rows",
                hint="Lower context_size, or use rows: packed.",
            )
        return ids

    def _conversations(self, chosen: list[tuple[int, Any]], place: Place) -> list[list[int]]:
        tokenizer, found = self.model.tokenizer, []
        is_whole = self.spec.train_on == "all"
        for index, messages in chosen:
            try:
                found.append(chat.rendered(tokenizer, messages) if is_whole else chat.answers_only(tokenizer, messages))
            except ValueError as error:
                raise InvalidSpec(f"{place(index)} {error}.", param=fields.CHAT) from error
        return self.model.encode(found) if is_whole and found else found
