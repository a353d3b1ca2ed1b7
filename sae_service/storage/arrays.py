"""Named arrays as one file in the format of safetensors, written and read one array at a time."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import jax.numpy as jnp
import numpy as np

from sae_service.errors import DamagedCheckpoint
from sae_service.storage.objects import Parts

HEADER_LIMIT = 100_000_000
"""The longest header that the format allows."""
METADATA = "__metadata__"
NAMES = {
    np.dtype(kind): name
    for kind, name in [
        (np.float64, "F64"), (np.float32, "F32"), (np.float16, "F16"), (jnp.bfloat16, "BF16"),
        (np.int64, "I64"), (np.int32, "I32"), (np.int16, "I16"), (np.int8, "I8"),
        (np.uint64, "U64"), (np.uint32, "U32"), (np.uint16, "U16"), (np.uint8, "U8"), (np.bool_, "BOOL"),
    ]
}  # fmt: skip
T = TypeVar("T")


class Described(Protocol):
    """An array, or what is known of one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its lengths."""
        ...

    @property
    def dtype(self) -> Any:
        """What it consists of."""
        ...


def to_parts(arrays: Mapping[str, np.ndarray]) -> Parts:
    """The file with `arrays`, whose memory is read when it is written. Equal arrays make equal bytes.

    The widest items come first, so that every array is aligned; the name decides among equals.
    """
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header = _header(ordered)

    def parts() -> Iterator[bytes | memoryview]:
        yield header
        for _, array in ordered:
            # Only an array that is not contiguous is copied.
            yield _memory(np.asarray(array, order="C"))

    return Parts(len(header) + sum(array.nbytes for _, array in ordered), parts)


def read(pieces: Iterator[bytes], like: Mapping[str, Described], keep: Callable[[str, np.ndarray], T]) -> dict[str, T]:
    """What `keep` makes of each array, by name. Each is in memory of its own, and let go of before the next is read.

    Raises DamagedCheckpoint unless the file has exactly the arrays that `like` describes, and nothing else.
    """
    source = _Source(pieces)
    length = int.from_bytes(source.take(8), "little")
    if length > HEADER_LIMIT:
        raise DamagedCheckpoint(f"the header of the arrays has {length} bytes, more than there can be")
    names = _checked(source.take(length), like)
    found = {name: keep(name, source.array(like[name])) for name in names}
    source.end()
    return found


@dataclass(frozen=True)
class Located:
    """An array in a file, and the bytes from `start` on that hold it."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int

    def range_of(self, first: int, last: int) -> tuple[int, int]:
        """The bytes of the rows from `first` up to but not including `last`."""
        size = self.dtype.itemsize * math.prod(self.shape[1:])
        return self.start + first * size, self.start + last * size

    def array(self, content: bytes) -> np.ndarray:
        """Rows out of their bytes."""
        return np.frombuffer(content, self.dtype).reshape(-1, *self.shape[1:])


def located(head: bytes) -> dict[str, Located]:
    """The arrays of a file, by the bytes with which it begins. Raises ValueError, KeyError or TypeError for what is no file."""
    length = int.from_bytes(head[:8], "little")
    entries = json.loads(head[8 : 8 + length])
    kinds = {name: kind for kind, name in NAMES.items()}
    return {
        name: Located(kinds[entry["dtype"]], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in entries.items() if name != METADATA
    }  # fmt: skip


def _header(ordered: list[tuple[str, np.ndarray]]) -> bytes:
    """The length of the description, and the description, with spaces up to the next multiple of eight bytes."""
    entries, position = {}, 0
    for name, array in ordered:
        offsets = [position, position + array.nbytes]
        entries[name] = {"dtype": NAMES[array.dtype], "shape": list(array.shape), "data_offsets": offsets}
        position = offsets[1]
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _checked(text: bytes, like: Mapping[str, Described]) -> list[str]:
    """The names of the arrays in the order of their bytes, which leave no gap."""
    try:
        entries = {name: entry for name, entry in json.loads(text).items() if name != METADATA}
        names = sorted(entries, key=lambda name: (*entries[name]["data_offsets"], name))
        written = {name: (entries[name]["dtype"], entries[name]["shape"], entries[name]["data_offsets"]) for name in names}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpoint(f"the header of the arrays cannot be read: {error}") from error
    if written.keys() != like.keys():
        raise DamagedCheckpoint("the checkpoint was written for other SAEs")
    position = 0
    for name in names:
        dtype, shape, offsets = written[name]
        expected = NAMES[np.dtype(like[name].dtype)], list(like[name].shape)
        if (dtype, shape) != expected:
            raise DamagedCheckpoint(f"{name} has dtype {dtype} and shape {shape}, expected {expected[0]} and {expected[1]}")
        end = position + math.prod(like[name].shape) * np.dtype(like[name].dtype).itemsize
        if offsets != [position, end]:
            raise DamagedCheckpoint(f"{name} is said to be at {offsets}, where only {[position, end]} is possible")
        position = end
    return names


def _memory(array: np.ndarray) -> memoryview:
    """The bytes of a contiguous array, in place. Not all kinds of arrays, nor empty ones, have such a view themselves."""
    return array.reshape(-1).view(np.uint8).data


class _Source:
    """Takes from a stream of pieces what comes next."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, memoryview(b"")

    def take(self, length: int) -> bytes:
        """The next bytes, which are few."""
        taken = bytearray(length)
        self._fill(memoryview(taken))
        return bytes(taken)

    def array(self, like: Described) -> np.ndarray:
        """The next array."""
        array = np.empty(like.shape, like.dtype)
        self._fill(_memory(array))
        return array

    def end(self) -> None:
        """Takes nothing more. Raises DamagedCheckpoint if there is more."""
        if len(self._rest) or next(self._pieces, b""):
            raise DamagedCheckpoint("there is something after the last of the arrays")

    def _fill(self, target: memoryview) -> None:
        while len(target):
            if not len(self._rest):
                # The one before goes before the next one comes.
                self._rest = memoryview(b"")
                self._rest = memoryview(next(self._pieces, b""))
            if not len(self._rest):
                raise DamagedCheckpoint("the arrays end too early")
            n = min(len(target), len(self._rest))
            target[:n] = self._rest[:n]
            target, self._rest = target[n:], self._rest[n:]
