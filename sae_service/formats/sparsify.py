"""The layout of EleutherAI's sparsify: `cfg.json` and `sae.safetensors`. It has TopK SAEs only.

sparsify subtracts `b_dec` from its input; the encoder's bias is written so that this changes nothing.

Checked with eai-sparsify 1.3.3: `SparseCoder.load_from_disk` reads ours, and ours reads what `save_to_disk` writes.
Not tried: transcoders and skip connections (refused), GroupMax (refused), and SAEs from its hub.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from sae_service.errors import InvalidSpec
from sae_service.formats.file_format import (
    Description,
    activation,
    assembled,
    checked,
    flag_of,
    json_of,
    safetensors_of,
    safetensors_shape,
)
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.weights import Shapes, arrays, centred, uncentred

CONFIG, WEIGHTS = FILES = "cfg.json", "sae.safetensors"
DEFAULT_K = 32
"""What sparsify takes where a config has no k."""

_SHAPES: Shapes = {
    "encoder.weight": ("d_sae", "d_in"),
    "encoder.bias": ("d_sae",),
    "W_dec": ("d_sae", "d_in"),
    "b_dec": ("d_in",),
}


def to_files(sae: InferenceSAE, description: Description) -> dict[str, bytes]:
    """The two files. Raises InvalidSpec for an SAE without k."""
    if activation(sae) != "topk":
        raise InvalidSpec(
            "sparsify has TopK SAEs only, and this SAE has no k", hint="Write it as saelens, dictionary_learning or gemma_scope."
        )
    tensors = arrays(sae)
    d_in, d_sae = tensors["W_enc"].shape
    config: dict[str, Any] = {
        "activation": "topk",
        "expansion_factor": max(1, d_sae // d_in),
        "normalize_decoder": True,
        "num_latents": d_sae,
        "k": sae.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": d_in,
        "hook_name": description.hook_name,
        "model_name": description.model_name,
        "dataset_path": description.dataset_path,
        "context_size": description.context_size,
        "training_architecture": description.architecture,
    }
    weights = {
        "encoder.weight": np.ascontiguousarray(tensors["W_enc"].T),
        "encoder.bias": uncentred(tensors["b_enc"], tensors["b_dec"], tensors["W_enc"]),
        "W_dec": np.ascontiguousarray(tensors["W_dec"]),
        "b_dec": tensors["b_dec"],
    }
    return {CONFIG: json.dumps(config, indent=1).encode(), WEIGHTS: save(weights)}


def from_files(files: Mapping[str, bytes]) -> InferenceSAE:
    """The SAE in the two files, ours or sparsify's own."""
    config = json_of(files, CONFIG)
    for name in ("transcode", "skip_connection", "signed"):
        if flag_of(config, name, default=False):
            raise InvalidSpec(f"an SAE with {name} has no equivalent here")
    if config.get("activation", "topk") != "topk":
        raise InvalidSpec(f"the activation must be topk; it is {str(config['activation'])[:50]}")
    tensors = checked(safetensors_of(files, WEIGHTS), _SHAPES)
    shared = {name: tensors[name] for name in ("W_dec", "b_dec")}
    encoder = {"W_enc": np.ascontiguousarray(tensors["encoder.weight"].T), "b_enc": tensors["encoder.bias"]}
    return assembled(centred({**shared, **encoder}), config.get("k", DEFAULT_K))


def sizes(folder: Path) -> tuple[int, int]:
    """d_in and d_sae."""
    d_sae, d_in = safetensors_shape(folder / WEIGHTS, "encoder.weight")
    return d_in, d_sae
