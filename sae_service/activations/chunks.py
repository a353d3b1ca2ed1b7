"""Rows of one hook point as bytes: those of some batches of prompts, one after the other, each with its place in the text.

A chunk is MAGIC, the length of its header (8 bytes, little-endian), the header as JSON, filled up with spaces to a multiple of
ALIGNMENT, and the rows; those of int8 come after their scales, one float32 for each row. The header says in which folder of the
cache the chunk belongs (stream, hook point and number type), and at which place in the text each of its batches begins.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped

from sae_service.activations.tokens import Cursor
from sae_service.schema import CacheDtype, Dtype

MAGIC = b"SAEROWS2"
ALIGNMENT = 64
Rows = Float[torch.Tensor, "rows d_in"]


@dataclass(frozen=True)
class Stored:
    """Rows in the number type of a cache. `scales`, one a row, are for int8 alone."""

    rows: Shaped[torch.Tensor, "rows d_in"]
    scales: Float[torch.Tensor, " rows"] | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes of the rows and their scales."""
        return sum(part.numel() * part.element_size() for part in (self.rows, self.scales) if part is not None)

    def on_host(self) -> "Stored":
        """The same in the memory of the host."""
        return Stored(self.rows.cpu(), None if self.scales is None else self.scales.cpu())


@dataclass(frozen=True)
class RowFormat:
    """The number type that rows have in a cache, and the one that the model gives them."""

    stored_as: CacheDtype | Dtype
    own: Dtype

    @property
    def _largest(self) -> float:
        """The largest bfloat16 that the model's number type has too."""
        most = torch.finfo(getattr(torch, self.own)).max
        rounded = torch.tensor(most, dtype=torch.bfloat16)
        return float(rounded if float(rounded) <= most else torch.nextafter(rounded, torch.zeros_like(rounded)))

    def store(self, rows: Rows) -> Stored:
        """Rows as they are stored. Of int8, one unit is the 127th part of the largest number of a row.

        A finite number stays finite: rows that are rounded have none beyond `_largest`.
        """
        if self.stored_as in (self.own, "float32"):
            return Stored(rows.to(getattr(torch, self.stored_as)))
        rows = rows.clamp(-self._largest, self._largest).where(rows.isfinite(), rows)
        if self.stored_as == "bfloat16":
            return Stored(rows.to(torch.bfloat16))
        scales = rows.float().abs().amax(dim=1) / 127
        units = rows.float() / torch.where(scales > 0, scales, 1)[:, None]
        # A row that is not finite has a scale that is not, so it does not come back as a finite one.
        return Stored(units.nan_to_num(0, 0, 0).round().clamp(-127, 127).to(torch.int8), scales)

    def restore(self, stored: Stored, device: str) -> Rows:
        """Rows as they are trained on."""
        rows, dtype = stored.rows.to(device), getattr(torch, self.own)
        return rows.to(dtype) if stored.scales is None else (rows.float() * stored.scales.to(device)[:, None]).to(dtype)


@dataclass(frozen=True)
class Batch:
    """The stored rows of one batch of prompts, and where it begins in the text."""

    cursor: Cursor
    stored: Stored


def packed(folder: str, previous: Cursor | None, batches: Sequence[Batch]) -> bytes:
    """A chunk of some batches that follow one another.

    Args:
        folder: where it belongs in the cache.
        previous: where the batch before the first begins, if that is known.
    """
    header = {
        "folder": folder,
        "previous": previous and previous.model_dump(),
        "width": batches[0].stored.rows.shape[1],
        "batches": [[batch.cursor.model_dump(), len(batch.stored.rows)] for batch in batches],
    }
    text = json.dumps(header).encode()
    start = len(MAGIC) + 8
    text += b" " * (-(start + len(text)) % ALIGNMENT)
    scales = [batch.stored.scales for batch in batches if batch.stored.scales is not None]
    parts = [*scales, *(batch.stored.rows for batch in batches)]
    return b"".join((MAGIC, len(text).to_bytes(8, "little"), text, *map(_bytes, parts)))


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data


class Chunk:
    """A chunk that was read.

    Attributes:
        folder: where it belongs in the cache.
        previous: where the batch before the first begins, if that is known.
        cursors: where each batch begins.
        width: of the rows.
    """

    def __init__(self, content: bytearray, form: RowFormat) -> None:
        """Reads a chunk that was stored in this form. Raises ValueError if it is none."""
        start = len(MAGIC) + 8
        end = start + int.from_bytes(content[len(MAGIC) : start], "little")
        if content[: len(MAGIC)] != MAGIC:
            raise ValueError("these are no rows")
        header = json.loads(content[start:end])
        self.folder = str(header["folder"])
        self.previous = None if header["previous"] is None else Cursor.model_validate(header["previous"])
        self.cursors = [Cursor.model_validate(cursor) for cursor, _ in header["batches"]]
        self._lengths = [int(n_rows) for _, n_rows in header["batches"]]
        n_rows, self.width = sum(self._lengths), int(header["width"])
        self._scales = None
        if form.stored_as == "int8":
            self._scales = torch.frombuffer(content, dtype=torch.float32, count=n_rows, offset=end)
            end += 4 * n_rows
        dtype = getattr(torch, form.stored_as)
        self._rows = torch.frombuffer(content, dtype=dtype, count=n_rows * self.width, offset=end).view(n_rows, self.width)

    def batches(self, first: int) -> Iterator[Batch]:
        """The batches from number `first` on."""
        start = sum(self._lengths[:first])
        for cursor, length in zip(self.cursors[first:], self._lengths[first:], strict=True):
            part = slice(start, start + length)
            yield Batch(cursor, Stored(self._rows[part], None if self._scales is None else self._scales[part]))
            start += length
