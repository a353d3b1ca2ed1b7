"""Tensors by name in torch's zip format, written and read without torch and without running what a file says.

Such a file is an archive of raw storages and of a pickle, a program for a stack machine that builds a dict of tensors
from them. The writer composes the few instructions needed. The reader carries out only those, and knows only the names
that a dict of tensors needs; everything else is refused by its name.
"""

import io
import math
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pickletools import genops
from typing import Any

import numpy as np

from sae_service.errors import DamagedCheckpoint
from sae_service.formats.file_format import unzipped, widened
from sae_service.sae.weights import Tensors

PROGRAM = "data.pkl"
MAX_AXES = 8
_ORDERED_DICT, _TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"
_STORAGES = {
    "torch FloatStorage": "<f4",
    "torch DoubleStorage": "<f8",
    "torch HalfStorage": "<f2",
    "torch BFloat16Storage": "<u2",
    "torch LongStorage": "<i8",
    "torch IntStorage": "<i4",
    "torch ShortStorage": "<i2",
    "torch CharStorage": "|i1",
    "torch ByteStorage": "|u1",
    "torch BoolStorage": "|b1",
}
_WRITTEN = {np.dtype(_STORAGES[name]): name for name in ("torch FloatStorage", "torch IntStorage")}


def to_bytes(tensors: Tensors, root: str) -> bytes:
    """The file of float32 and int32 tensors; `root` is the folder inside it that torch expects."""
    items = b"".join(_string(name) + _tensor(str(index), tensor) for index, (name, tensor) in enumerate(tensors.items()))
    members = {PROGRAM: b"\x80\x02}(" + items + b"u.", "byteorder": b"little"}
    members |= {f"data/{index}": np.ascontiguousarray(tensor).tobytes() for index, tensor in enumerate(tensors.values())}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in {**members, "version": b"3\n"}.items():
            archive.writestr(zipfile.ZipInfo(f"{root}/{name}"), content)
    return file.getvalue()


def _string(text: str) -> bytes:
    content = text.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def _integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value) if value < 1 << 31 else b"\x8a\x08" + struct.pack("<q", value)


def _tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def _name(name: str) -> bytes:
    return b"c" + name.replace(" ", "\n").encode() + b"\n"


def _tensor(key: str, tensor: np.ndarray) -> bytes:
    """The instructions that make one tensor of its storage: where it starts, its shape, its strides, no gradient."""
    storage = _tuple(_string("storage"), _name(_WRITTEN[tensor.dtype]), _string(key), _string("cpu"), _integer(tensor.size))
    strides = [math.prod(tensor.shape[axis + 1 :]) for axis in range(tensor.ndim)]
    shape = _tuple(*map(_integer, tensor.shape)) + _tuple(*map(_integer, strides))
    return _name(_TENSOR) + _tuple(storage + b"Q", _integer(0), shape, b"\x89", _name(_ORDERED_DICT) + b")R") + b"R"


def from_bytes(content: bytes, name: str) -> Tensors:
    """The tensors in the file; bfloat16 comes out as float32. Raises DamagedCheckpoint."""
    members = unzipped(content, name)
    roots = [member.removesuffix(PROGRAM) for member in members if member.count("/") == 1 and member.endswith(f"/{PROGRAM}")]
    if len(roots) != 1:
        raise DamagedCheckpoint(f"{name} is a zip file, but none that torch has written")
    root = roots[0]
    if members.get(f"{root}byteorder", b"little") != b"little":
        raise DamagedCheckpoint(f"{name} holds numbers in another byte order")
    machine = _Machine(lambda key: members[f"{root}data/{key}"])
    try:
        state = machine.run(members[root + PROGRAM])
    except (IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise DamagedCheckpoint(f"{name} cannot be followed: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, np.ndarray) for tensor in state.values()):
        raise DamagedCheckpoint(f"{name} holds something else than tensors by name")
    return state


@dataclass(frozen=True)
class _Name:
    """A name that the file asks for; it stays a name."""

    text: str


@dataclass(frozen=True)
class _Storage:
    values: np.ndarray


_MARK = object()
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "MARK": _MARK}
_ARGUMENTS = ("BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1")


class _Machine:
    """The stack, and the few instructions that it knows."""

    def __init__(self, load: Callable[[str], bytes]) -> None:
        """Makes a machine; `load` gives the content of a storage by its key."""
        self._load = load
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._storages: dict[tuple[str, str], _Storage] = {}

    def run(self, program: bytes) -> Any:
        """What the program builds."""
        for opcode, argument, _ in genops(program):
            if opcode.name != "STOP":
                self._step(opcode.name, argument)
        return self._stack.pop()

    def _step(self, opcode: str, argument: Any) -> None:
        stack = self._stack
        match opcode:
            case "PROTO":
                pass
            case "GLOBAL":
                stack.append(_known(argument))
            case "EMPTY_DICT":
                stack.append({})
            case "TUPLE":
                stack.append(tuple(self._above_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(reversed([stack.pop() for _ in range(int(opcode[-1]))])))
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "BINPERSID":
                stack.append(self._storage(*stack.pop()))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(_called(stack.pop(), arguments))
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _fill(stack[-1], [key, value])
            case "SETITEMS":
                items = self._above_mark()
                _fill(stack[-1], items)
            case "BUILD":
                # What torch notes beside an OrderedDict.
                stack.pop()
            case _ if opcode in _CONSTANTS or opcode in _ARGUMENTS:
                stack.append(_CONSTANTS.get(opcode, argument))
            case _:
                raise DamagedCheckpoint(f"the file uses the instruction {opcode}, which a file of tensors has no use for")

    def _above_mark(self) -> list[Any]:
        items = []
        while (item := self._stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _storage(self, tag: Any, kind: Any, key: Any, device: Any, size: Any) -> _Storage:
        if not isinstance(kind, _Name) or kind.text not in _STORAGES or not isinstance(key, str) or not _is_size(size):
            raise DamagedCheckpoint("the file refers to something that is no storage")
        if (kind.text, key) not in self._storages:
            values = np.frombuffer(self._load(key), _STORAGES[kind.text])
            values = widened(values) if kind.text == "torch BFloat16Storage" else values
            self._storages[kind.text, key] = _Storage(values)
        storage = self._storages[kind.text, key]
        if len(storage.values) != size:
            raise DamagedCheckpoint(f"a storage has {len(storage.values)} numbers, expected {size}")
        return storage


def _known(name: str) -> _Name:
    if name not in _STORAGES and name not in (_ORDERED_DICT, _TENSOR, _PARAMETER):
        raise DamagedCheckpoint(f"the file asks for {name.replace(' ', '.')[:100]}, which a file of tensors has no use for")
    return _Name(name)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _fill(target: Any, items: list[Any]) -> None:
    """Puts keys and values, which alternate, into a dict."""
    keys = items[::2]
    if not isinstance(target, dict) or not all(isinstance(key, str) for key in keys):
        raise DamagedCheckpoint("the file fills something else than a dict of names")
    target.update(zip(keys, items[1::2], strict=True))


def _called(function: Any, arguments: Any) -> Any:
    """What one of the three functions that the reader knows makes of its arguments."""
    name = function.text if isinstance(function, _Name) and isinstance(arguments, tuple) else None
    if name == _ORDERED_DICT and not arguments:
        return {}
    if name == _TENSOR:
        return _viewed(*arguments[:4])
    if name == _PARAMETER:
        return arguments[0]
    raise DamagedCheckpoint("the file calls something that cannot be called")


def _viewed(storage: Any, start: Any, shape: Any, strides: Any) -> np.ndarray:
    """A view into a storage that stays inside it."""
    if not isinstance(storage, _Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise DamagedCheckpoint("a tensor is described by something else than a storage, a shape and strides")
    if len(shape) != len(strides) or len(shape) > MAX_AXES or not all(map(_is_size, (start, *shape, *strides))):
        raise DamagedCheckpoint("a tensor's shape and strides do not fit")
    if 0 in shape:
        return np.zeros(shape, storage.values.dtype)
    last = start + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if last >= len(storage.values) or math.prod(shape) > len(storage.values):
        raise DamagedCheckpoint("a tensor reaches beyond its storage")
    steps = [stride * storage.values.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage.values[start:], shape, steps, writeable=False)
