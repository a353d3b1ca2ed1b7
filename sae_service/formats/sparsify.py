"""The layout of EleutherAI's sparsify: `cfg.json` and `sae.safetensors`. It has TopK SAEs and transcoders only.

sparsify subtracts `b_dec` from an autoencoder's input; the encoder's bias is written so that this changes nothing. A
transcoder's input stays as it is there. It reads and writes rows of one width, and its bypass `W_skip` is (d_in written,
d_in read), the transpose of ours. sparsify's own configs name no hook points.

Checked with eai-sparsify 1.3.3: `SparseCoder.load_from_disk` reads ours, and ours reads what `save_to_disk` writes.
Not tried: SAEs with a skip connection (refused), GroupMax (refused), and SAEs from its hub.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from sae_service.errors import InvalidSpec
from sae_service.formats.file_format import (
    OWN_FILES,
    Description,
    activation,
    assembled,
    checked,
    flag_of,
    form,
    json_of,
    safetensors_of,
    safetensors_shape,
    sites_named,
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
_BYPASS: Shapes = {"W_skip": ("d_in", "d_in")}


def to_files(sae: InferenceSAE, description: Description) -> dict[str, bytes]:
    """The two files. Raises InvalidSpec for an SAE without k, a crosscoder, or a transcoder of two widths."""
    is_transcoder = _is_transcoder(sae, description)
    tensors = arrays(sae)
    d_in, d_sae = tensors["W_enc"].shape
    config: dict[str, Any] = {
        "activation": "topk",
        "expansion_factor": max(1, d_sae // d_in),
        "normalize_decoder": True,
        "num_latents": d_sae,
        "k": sae.k,
        "multi_topk": False,
        "skip_connection": sae.W_skip is not None,
        "transcode": is_transcoder,
        "d_in": d_in,
        "hook_name": description.reads[0],
        **({"hook_name_out": description.writes[0]} if is_transcoder else {}),
        "model_name": description.model_name,
        "dataset_path": description.dataset_path,
        "context_size": description.context_size,
        "training_architecture": description.architecture,
    }
    b_enc = tensors["b_enc"] if is_transcoder else uncentred(tensors["b_enc"], tensors["b_dec"], tensors["W_enc"])
    weights = {
        "encoder.weight": np.ascontiguousarray(tensors["W_enc"].T),
        "encoder.bias": b_enc,
        "W_dec": np.ascontiguousarray(tensors["W_dec"]),
        "b_dec": tensors["b_dec"],
        **({"W_skip": np.ascontiguousarray(tensors["W_skip"].T)} if "W_skip" in tensors else {}),
    }
    return {CONFIG: json.dumps(config, indent=1).encode(), WEIGHTS: save(weights)}


def _is_transcoder(sae: InferenceSAE, description: Description) -> bool:
    """Whether it is one or an autoencoder. Raises InvalidSpec for what sparsify has not."""
    found, (d_read, d_write) = form(sae, description), (sae.W_enc.shape[0], sae.W_dec.shape[1])
    if found == "crosscoder":
        raise InvalidSpec("sparsify cannot hold a crosscoder", hint=OWN_FILES)
    if activation(sae) != "topk":
        others = "saelens" if found == "transcoder" else "saelens, dictionary_learning, gemma_scope or gemma_scope_2"
        raise InvalidSpec("sparsify has TopK SAEs only, and this SAE has no k", hint=f"Write it as {others}.")
    if d_read != d_write:
        widths = f"this one reads rows of {d_read} numbers and writes rows of {d_write}"
        raise InvalidSpec(f"a transcoder of sparsify has one width, and {widths}", hint=OWN_FILES)
    return found == "transcoder"


def from_files(files: Mapping[str, bytes]) -> InferenceSAE:
    """The SAE in the two files, ours or sparsify's own."""
    config = json_of(files, CONFIG)
    is_transcoder, has_bypass, is_signed = (
        flag_of(config, name, default=False) for name in ("transcode", "skip_connection", "signed")
    )
    if is_signed or (has_bypass and not is_transcoder):
        raise InvalidSpec(f"an SAE with {'signed' if is_signed else 'skip_connection'} has no equivalent here")
    if config.get("activation", "topk") != "topk":
        raise InvalidSpec(f"the activation must be topk; it is {str(config['activation'])[:50]}")
    tensors = checked(safetensors_of(files, WEIGHTS), {**_SHAPES, **_BYPASS} if has_bypass else _SHAPES)
    weights = {name: tensors[name] for name in ("W_dec", "b_dec")}
    weights |= {"W_enc": np.ascontiguousarray(tensors["encoder.weight"].T), "b_enc": tensors["encoder.bias"]}
    if has_bypass:
        weights["W_skip"] = np.ascontiguousarray(tensors["W_skip"].T)
    sites = sites_named(weights, config.get("hook_name"), config.get("hook_name_out"), is_transcoder)
    return assembled(weights if is_transcoder else centred(weights), config.get("k", DEFAULT_K), sites)


def sizes(folder: Path) -> tuple[int, int]:
    """d_in and d_sae."""
    d_sae, d_in = safetensors_shape(folder / WEIGHTS, "encoder.weight")
    return d_in, d_sae
