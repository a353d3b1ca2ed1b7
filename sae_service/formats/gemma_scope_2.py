"""The layout of Gemma Scope 2: `params.safetensors` with w_enc, b_enc, w_dec, b_dec and threshold.

A ReLU SAE is written with thresholds of 0. Model and hook points are in a `config.json` beside it, which is neither read nor
written: a transcoder without a bypass is read as an SAE, as nothing in the file of weights tells them apart. One with a
bypass is refused, and no transcoder is written.

Checked against the layout as Gemma Scope 2 describes it; no released file was read.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from sae_service.errors import InvalidSpec
from sae_service.formats.file_format import (
    Description,
    assembled,
    checked,
    refuse_all_but_autoencoders,
    refuse_k,
    safetensors_of,
    safetensors_shape,
)
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.weights import COMPLETE, Shapes, arrays, of_autoencoder

WEIGHTS = "params.safetensors"
FILES = (WEIGHTS,)
BYPASS = "affine_skip_connection"
_SHAPES: Shapes = {**of_autoencoder(COMPLETE), "threshold": ("d_sae",)}


def to_files(sae: InferenceSAE, description: Description) -> dict[str, bytes]:
    """The file. Raises InvalidSpec for an SAE with k, and for what is no autoencoder."""
    refuse_all_but_autoencoders(sae, description, "Gemma Scope 2's format")
    refuse_k(sae, "Gemma Scope 2's format")
    return {WEIGHTS: save({name.lower(): np.ascontiguousarray(tensor) for name, tensor in arrays(sae).items()})}


def from_files(files: Mapping[str, bytes]) -> InferenceSAE:
    """The SAE in the file. Raises InvalidSpec for a transcoder with a bypass."""
    tensors = safetensors_of(files, WEIGHTS)
    if BYPASS in tensors:
        raise InvalidSpec(f"{WEIGHTS} holds a transcoder with a bypass ({BYPASS}), which is not read here")
    names = {name.lower(): name for name in _SHAPES}
    return assembled(checked({names.get(name, name): tensor for name, tensor in tensors.items()}, _SHAPES))


def sizes(folder: Path) -> tuple[int, int]:
    """d_in and d_sae."""
    return safetensors_shape(folder / WEIGHTS, "w_enc")
