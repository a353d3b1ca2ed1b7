"""The layout of Gemma Scope: `params.npz` with W_enc, b_enc, W_dec, b_dec and threshold in float32.

A ReLU SAE is written with thresholds of 0. The file says nothing about model, hook or training. Gemma Scope's
transcoders without a bypass have the same names in a file of the same name, so that nothing tells them from SAEs of one
width: such a file is read as an SAE, and its figures are then those of a bad one. No transcoder is written.

Checked against the layout as Gemma Scope describes it; no released file was read.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sae_service.errors import DamagedCheckpoint
from sae_service.formats.file_format import (
    Description,
    assembled,
    checked,
    content_of,
    opened_zip,
    refuse_all_but_autoencoders,
    refuse_k,
    unzipped,
)
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.weights import COMPLETE, arrays, of_autoencoder

WEIGHTS = "params.npz"
FILES = (WEIGHTS,)


def to_files(sae: InferenceSAE, description: Description) -> dict[str, bytes]:
    """The file. Raises InvalidSpec for an SAE with k, and for what is no autoencoder."""
    refuse_all_but_autoencoders(sae, description, "Gemma Scope's format")
    refuse_k(sae, "Gemma Scope's format")
    file = io.BytesIO()
    tensors: dict[str, Any] = {**arrays(sae)}
    np.savez(file, **tensors)
    return {WEIGHTS: file.getvalue()}


def from_files(files: Mapping[str, bytes]) -> InferenceSAE:
    """The SAE in the file."""
    try:
        members = unzipped(content_of(files, WEIGHTS), WEIGHTS)
        tensors = {
            name.removesuffix(".npy"): np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
            for name, content in members.items()
        }
    except (ValueError, TypeError, EOFError, MemoryError, OverflowError, RecursionError) as error:
        raise DamagedCheckpoint(f"{WEIGHTS} is not a file of numpy arrays: {error}") from error
    return assembled(checked(tensors, {**of_autoencoder(COMPLETE), "threshold": ("d_sae",)}))


def sizes(folder: Path) -> tuple[int, int]:
    """d_in and d_sae."""
    try:
        with opened_zip(folder / WEIGHTS) as archive, archive.open("W_enc.npy") as member:
            np.lib.format.read_magic(member)
            (d_in, d_sae), _, _ = np.lib.format.read_array_header_1_0(member)
            return int(d_in), int(d_sae)
    except (KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"{WEIGHTS} has no readable matrix W_enc: {error!r}") from error
