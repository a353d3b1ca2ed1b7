"""The contract between a file format and everything else, and what several formats share.

A format is one file in `formats/` with two pure functions on bytes: `to_files` and `from_files`. Content that is broken
or hostile is DamagedCheckpoint; an SAE that one of the two sides cannot express is InvalidSpec.
"""

import io
import json
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError, deserialize

from sae_service.errors import DamagedCheckpoint, InvalidSpec
from sae_service.readable import Look
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.sites import Sites, at
from sae_service.sae.weights import COMPLETE, Shapes, Tensors

UNNAMED_READ, UNNAMED_WRITE = "unnamed_input", "unnamed_output"
"""The hook points of a transcoder whose file does not name them."""
OWN_FILES = "Download it without a format: its own files hold it."
LARGEST_EXPANSION = 64
LARGEST_HEADER = 1 << 24
LARGEST_DIRECTORY = 1 << 20
ZIPPED = (".npz", ".pt")
UNREADABLE_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError)
_SAFETENSORS_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4"}


@dataclass(frozen=True)
class Description:
    """What a file says about an SAE beside its weights.

    Attributes:
        reads: the hook points that it reads, in TransformerLens' words.
        writes: those that it writes.
        model_name: the language model.
        dataset_path: the text that it was trained on.
        context_size: tokens in each row that the model read.
        architecture: the kind that trained it.
        details: that kind's config.
    """

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    model_name: str
    dataset_path: str
    context_size: int
    architecture: str
    details: Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """One file format.

    Attributes:
        files: the names of its files, the one with the weights last.
        to_files: (SAE, description) -> content by file name. Raises InvalidSpec for an SAE that it cannot express.
        from_files: content by file name -> SAE; other files are ignored. Raises DamagedCheckpoint, or InvalidSpec for
            what has no equivalent `InferenceSAE`.
        sizes: folder with the files -> (d_in, d_sae), from their headers. Raises DamagedCheckpoint.
    """

    files: tuple[str, ...]
    to_files: Callable[[InferenceSAE, Description], dict[str, bytes]]
    from_files: Callable[[Mapping[str, bytes]], InferenceSAE]
    sizes: Callable[[Path], tuple[int, int]]


def form(sae: InferenceSAE, description: Description) -> Literal["autoencoder", "transcoder", "crosscoder"]:
    """What reads one hook point and writes the same, or another, or whatever has several hook points on a side."""
    if len(description.reads) > 1 or len(description.writes) > 1:
        return "crosscoder"
    if description.reads != description.writes:
        return "transcoder"
    if sae.W_skip is not None or sae.W_enc.shape[0] != sae.W_dec.shape[1]:
        raise InvalidSpec("an SAE that writes the hook point that it reads has no bypass, and one width")
    return "autoencoder"


def refuse_all_but_autoencoders(sae: InferenceSAE, description: Description, format: str) -> None:
    """Raises InvalidSpec for a transcoder or a crosscoder, which `format` cannot express."""
    found = form(sae, description)
    if found == "autoencoder":
        return
    elsewhere = "sparsify" if sae.k else "saelens"
    hint = f"Write it as {elsewhere}, or download it without a format." if found == "transcoder" else OWN_FILES
    raise InvalidSpec(f"{format} cannot hold a {found}", hint=hint)


def refuse_k(sae: InferenceSAE, format: str) -> None:
    """Raises InvalidSpec for an SAE with k, for which `format` has no place."""
    if activation(sae) == "topk":
        raise InvalidSpec(
            f"{format} has thresholds but no k, so it cannot hold a TopK SAE",
            hint="Write it as saelens, dictionary_learning or sparsify.",
        )


def activation(sae: InferenceSAE) -> Literal["relu", "jumprelu", "topk"]:
    """What chooses the latents of `sae`."""
    thresholds = np.asarray(sae.threshold)
    if sae.k is None:
        return "jumprelu" if np.any(thresholds) else "relu"
    if np.any(thresholds > 0):
        raise InvalidSpec("no file format has both k and thresholds, and this SAE has both")
    return "topk"


def checked(tensors: Tensors, shapes: Shapes, others: Collection[str] = ()) -> Tensors:
    """The tensors that `shapes` names, as float32. Nothing may be missing, and besides them only `others` be there."""
    missing, unknown = sorted(shapes.keys() - tensors.keys()), sorted(tensors.keys() - shapes.keys() - set(others))
    if missing or unknown:
        raise DamagedCheckpoint(f"the tensors are not those expected: missing {missing}, unknown {str(unknown)[:200]}")
    lengths: dict[str, int] = {}
    for name, axes in shapes.items():
        shape = tensors[name].shape
        if len(shape) != len(axes) or any(lengths.setdefault(*axis) != axis[1] for axis in zip(axes, shape, strict=True)):
            raise DamagedCheckpoint(f"{name} has shape {shape}, expected {axes} with {lengths}")
        if tensors[name].dtype.kind != "f" or 0 in shape:
            raise DamagedCheckpoint(f"{name} holds no floating-point numbers")
    with np.errstate(over="ignore"):
        return {name: np.ascontiguousarray(tensors[name], np.float32) for name in shapes}


def sites_named(weights: Tensors, hook_name: Any, hook_name_out: Any, is_transcoder: bool) -> Sites | None:
    """The sites of weights with one hook point on each side, by what a config says of them.

    A config that names a second hook point means a transcoder. None for an autoencoder without a name.
    """
    d_read, d_write = weights["W_enc"].shape[0], weights["W_dec"].shape[1]
    read, write = (name if isinstance(name, str) and name else None for name in (hook_name, hook_name_out))
    if not is_transcoder and write in (None, read):
        return None if read is None else at(read, d_read)
    if read is not None and read == write:
        raise InvalidSpec(f"the transcoder reads and writes the same: {read[:100]}")
    return Sites(((read or UNNAMED_READ, d_read),), ((write or UNNAMED_WRITE, d_write),))


def assembled(weights: Tensors, k: Any = None, sites: Sites | None = None) -> InferenceSAE:
    """The SAE of checked weights; without thresholds they are 0."""
    parts: dict[str, Any] = {"threshold": np.zeros_like(weights["b_enc"]), **weights}
    for name in (*COMPLETE, "W_skip"):
        if name in parts and not np.all(np.isfinite(parts[name])):
            raise DamagedCheckpoint(f"{name} has values that are not finite")
    if np.any(np.isnan(parts["threshold"])):
        raise DamagedCheckpoint("threshold has values that are not numbers")
    d_sae = len(parts["b_enc"])
    if k is not None and (type(k) is not int or not 1 <= k <= d_sae):
        raise DamagedCheckpoint(f"k must be a whole number from 1 to {d_sae}")
    return InferenceSAE(**parts, k=k, sites=sites)


def content_of(files: Mapping[str, bytes], name: str) -> bytes:
    """One of the files."""
    if name not in files:
        raise DamagedCheckpoint(f"there is no file {name}")
    return files[name]


def json_of(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        value = json.loads(content_of(files, name))
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpoint(f"{name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DamagedCheckpoint(f"{name} holds no JSON object")
    return value


def flag_of(config: Mapping[str, Any], name: str, default: bool) -> bool:
    """A field of a config that is true or false."""
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise DamagedCheckpoint(f"{name} must be true or false")
    return value


def safetensors_shape(path: Path, tensor: str) -> tuple[int, int]:
    """The shape of a matrix in a safetensors file, of which only the header is read."""
    try:
        with Look(path) as file:
            length = int.from_bytes(file.read(8), "little")
            if length > LARGEST_HEADER:
                raise DamagedCheckpoint(f"{path.name} has a header of {length} bytes")
            n_rows, n_columns = json.loads(file.read(length))[tensor]["shape"]
            return int(n_rows), int(n_columns)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedCheckpoint(f"{path.name} has no readable matrix {tensor}: {error!r}") from error


def widened(halves: np.ndarray) -> np.ndarray:
    """bfloat16 numbers, given as 16-bit integers, as float32."""
    return (halves.astype(np.uint32) << 16).view(np.float32)


def safetensors_of(files: Mapping[str, bytes], name: str) -> Tensors:
    """The tensors in a safetensors file."""
    try:
        found: Tensors = {}
        for tensor, item in deserialize(content_of(files, name)):
            values = np.frombuffer(item["data"], _SAFETENSORS_TYPES[item["dtype"]]).reshape(item["shape"])
            found[tensor] = widened(values) if item["dtype"] == "BF16" else values
        return found
    except (KeyError, ValueError, SafetensorError) as error:
        raise DamagedCheckpoint(f"{name} is not a safetensors file of numbers: {error}") from error


def unpacked_bytes(path: Path) -> int:
    """Bytes that reading a file takes: of a zip file those of its members. Raises DamagedCheckpoint for a broken one."""
    if path.suffix not in ZIPPED:
        return path.stat().st_size
    with opened_zip(path) as archive:
        return sum(member.file_size for member in archive.infolist())


@contextmanager
def opened_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip file whose directory and headers are looked into. Raises DamagedCheckpoint if it cannot be read."""
    try:
        with Look(path, LARGEST_DIRECTORY) as file, zipfile.ZipFile(file) as archive:
            yield archive
    except UNREADABLE_ZIP as error:
        raise DamagedCheckpoint(f"{path.name} is not a whole zip file: {error}") from error


def unzipped(content: bytes, name: str) -> dict[str, bytes]:
    """The members of a zip file, unless they would take far more room than the file."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(member.file_size for member in archive.infolist()) > LARGEST_EXPANSION * len(content):
                raise DamagedCheckpoint(f"{name} would expand to more than {LARGEST_EXPANSION} times its size")
            return {member.filename: archive.read(member) for member in archive.infolist()}
    except UNREADABLE_ZIP as error:
        raise DamagedCheckpoint(f"{name} is not a whole zip file: {error}") from error
