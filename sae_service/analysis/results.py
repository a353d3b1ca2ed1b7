"""The files that say what the latents of an SAE do, and reading a few of them without reading all. Imports no model.

`latents.safetensors` has the columns of `columns.py`, each an array in one piece, so that the rows of some latents are a range of
bytes, and the tokens of the model as text. `latents.json` says what they are about.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from sae_service.errors import DamagedCheckpoint
from sae_service.storage import arrays
from sae_service.storage.objects import Content, Storage

COLUMNS, ABOUT = "latents.safetensors", "latents.json"
FORMAT = 1
HEAD = 1 << 14
"""Bytes that hold the description of the columns, and more: a few thousand are needed."""


def to_files(columns: Mapping[str, np.ndarray], vocabulary: Sequence[str], about: Mapping[str, Any]) -> dict[str, Content]:
    """The two files.

    Args:
        vocabulary: the tokens of the model as text.
    """
    words = [word.encode(errors="replace") for word in vocabulary]
    text = {
        "vocabulary": np.frombuffer(b"".join(words), np.uint8),
        "vocabulary_offsets": np.cumsum([0, *map(len, words)], dtype=np.int64),
    }
    head = {"format": FORMAT, **about}
    return {COLUMNS: arrays.to_parts({**columns, **text}), ABOUT: json.dumps(head, indent=1).encode()}


@dataclass(frozen=True)
class Table:
    """The columns in a storage, read as they are asked for.

    Args:
        key: where the files are.
    """

    storage: Storage
    key: str
    _whole: dict[str, np.ndarray] = field(default_factory=dict)

    @cached_property
    def about(self) -> dict[str, Any]:
        """What the columns are about. Raises DamagedCheckpoint."""
        return json.loads(self.storage.get(f"{self.key}/{ABOUT}"))

    @cached_property
    def _places(self) -> dict[str, arrays.Located]:
        head = b"".join(self.storage.stream(f"{self.key}/{COLUMNS}", 0, min(HEAD, self.size)))
        try:
            return arrays.located(head)
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedCheckpoint(f"the columns of {self.key} cannot be read: {error}") from error

    @cached_property
    def size(self) -> int:
        """Bytes of the columns."""
        return self.storage.size(f"{self.key}/{COLUMNS}")

    @property
    def names(self) -> list[str]:
        """The names of the columns."""
        return list(self._places)

    @property
    def n_latents(self) -> int:
        """How many latents there are."""
        return self._places["count"].shape[0]

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def whole(self, name: str) -> np.ndarray:
        """A column, which is remembered."""
        if name not in self._whole:
            self._whole[name] = self.rows({name: [(0, self._places[name].shape[0])]})[name]
        return self._whole[name]

    def rows(self, wanted: Mapping[str, Sequence[tuple[int, int]]]) -> dict[str, np.ndarray]:
        """Rows of columns: of each, those from a first up to but not including a last, for each of some ranges."""
        ranges = [(name, *self._places[name].range_of(*rows)) for name, parts in wanted.items() for rows in parts]
        pieces = iter(self.storage.ranges(f"{self.key}/{COLUMNS}", [(start, end) for _, start, end in ranges]))
        found = {name: b"".join(next(pieces) for _ in parts) for name, parts in wanted.items()}
        return {name: self._places[name].array(content) for name, content in found.items()}

    def latent(self, number: int) -> dict[str, np.ndarray]:
        """All columns of one latent, and `offsets` of its slots, of which there is one more."""
        names = [name for name in self.names if self._places[name].shape[:1] == (self.n_latents,) and name not in _OF_NO_LATENT]
        n_slots = self._places["passages"].shape[1]
        first = number * n_slots
        wanted = {name: [(number, number + 1)] for name in names} | {"offsets": [(first, first + n_slots + 1)]}
        found = self.rows(wanted)
        return {name: values if name == "offsets" else values[0] for name, values in found.items()}

    @cached_property
    def vocabulary(self) -> list[str]:
        """The tokens of the model as text."""
        text, offsets = self.whole("vocabulary").tobytes(), self.whole("vocabulary_offsets").tolist()
        return [text[first:last].decode(errors="replace") for first, last in pairwise(offsets)]


_OF_NO_LATENT = ("offsets", "positions", "activations", "passage_numbers", "passage_tokens", "vocabulary", "vocabulary_offsets")
