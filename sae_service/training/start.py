"""Weights that were trained before, as the start of a job's SAE: read, checked, and pinned by their hash."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_service.architectures import ARCHITECTURES
from sae_service.errors import DamagedCheckpoint, InvalidSpec
from sae_service.formats import FORMATS, folder
from sae_service.sae.inference import InferenceSAE, unscaled
from sae_service.spec import InitialSpec, SAESpec

LARGEST_READ = 1 << 27
"""Bytes of the files that are read whole while a job is submitted; larger ones are left to the training process."""


@dataclass(frozen=True)
class Initial:
    """The weights that an SAE starts from, for raw activations, and the hash of their files."""

    sae: InferenceSAE
    sha256: str


def folder_of(initial: InitialSpec) -> Path:
    """The folder that is read."""
    return Path(initial.path).expanduser().resolve()


def check(spec: SAESpec, index: int, d_in: int | None) -> None:
    """Raises InvalidSpec, with the field's pointer, if the SAE at `index` cannot start from what it names.

    The sizes come from the headers; small files are read as a whole. No device is touched.

    Args:
        d_in: the width of the hook point, or None if it is not known yet.
    """
    initial = spec.initial
    if initial is None:
        return
    with _blamed(index):
        folder, format = folder_of(initial), FORMATS[initial.format]
        missing = [name for name in format.files if not (folder / name).is_file()]
        if missing:
            raise InvalidSpec(f"{initial.path} has no file {missing[0]}, which the format {initial.format} has")
        _check_sizes(spec, *format.sizes(folder), d_in)
    if sum((folder / name).stat().st_size for name in format.files) <= LARGEST_READ:
        load(spec, index, d_in)


def load(spec: SAESpec, index: int, d_in: int | None) -> Initial:
    """What the SAE at `index` starts from. Raises InvalidSpec, with the field's pointer, if that is not possible."""
    assert spec.initial is not None
    with _blamed(index):
        files = folder.read(folder_of(spec.initial), spec.initial.format)
        sha256 = folder.digest(files)
        if spec.initial.sha256 not in (None, sha256):
            raise InvalidSpec(f"the files have changed: their hash is {sha256}", "/initial/sha256")
        found = Initial(FORMATS[spec.initial.format].from_files(files), sha256)
        found_d_in, found_d_sae = found.sae.W_enc.shape
        _check_sizes(spec, found_d_in, found_d_sae, d_in)
        parameters(spec, found, scale=1)
        return found


def parameters(spec: SAESpec, initial: Initial, scale: float) -> Any:
    """The parameters, as NumPy arrays, that do the same on rows times `scale`. Raises InvalidSpec if there are none."""
    return ARCHITECTURES[spec.architecture.kind].from_inference(spec.architecture, unscaled(initial.sae, 1 / scale))


def _check_sizes(spec: SAESpec, found_d_in: int, found_d_sae: int, d_in: int | None) -> None:
    if found_d_sae != spec.architecture.d_sae:
        raise InvalidSpec(f"must be {found_d_sae}, as in the SAE that it starts from", "/architecture/d_sae")
    if d_in not in (None, found_d_in):
        raise InvalidSpec(f"the SAE reads rows of {found_d_in} numbers, and those of {spec.hook_name} have {d_in}")


@contextmanager
def _blamed(index: int) -> Iterator[None]:
    """Makes what is wrong with the files or the SAE an error of a field of the SAE at `index`."""
    try:
        yield
    except (InvalidSpec, DamagedCheckpoint) as error:
        raise InvalidSpec(error.message, f"/saes/{index}{error.param or '/initial/path'}", error.hint) from error
