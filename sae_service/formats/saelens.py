"""The layout of SAELens 6: `cfg.json` and `sae_weights.safetensors`.

A ReLU SAE is written as `standard`, one with k as `topk`, every SAE with thresholds as `jumprelu`, whatever trained
it. Scale, decoder norms and pre-encoder bias are folded in, so a reader applies nothing to its input.

Checked with sae-lens 6.54.12: it reads all three kinds, and ours reads its standard, gated, jumprelu and topk. Configs
from before SAELens 6 are translated, but no file of that age was tried.
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
from sae_service.sae.weights import COMPLETE, MATRICES, Shapes, Tensors, arrays, centred, ungated, with_unit_decoder

CONFIG, WEIGHTS = FILES = "cfg.json", "sae_weights.safetensors"
SAE_LENS_VERSION = "6.54.12"
DEFAULT_K = 100
"""What SAELens takes where a config of kind `topk` has no k."""

_KINDS = {"relu": "standard", "jumprelu": "jumprelu", "topk": "topk"}
_LATENT = ("d_sae",)
_SHAPES: dict[Any, Shapes] = {
    "standard": COMPLETE,
    "topk": COMPLETE,
    "jumprelu": {**COMPLETE, "threshold": _LATENT},
    "gated": {**MATRICES, "b_dec": ("d_in",), "r_mag": _LATENT, "b_gate": _LATENT, "b_mag": _LATENT},
}


def to_files(sae: InferenceSAE, description: Description) -> dict[str, bytes]:
    """The two files."""
    kind, tensors = _KINDS[activation(sae)], arrays(sae)
    d_in, d_sae = tensors["W_enc"].shape
    config: dict[str, Any] = {
        "architecture": kind,
        **({"k": sae.k, "rescale_acts_by_decoder_norm": False} if kind == "topk" else {}),
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if description.hook_name.endswith("hook_z") else "none",
        "metadata": {
            "sae_lens_version": SAE_LENS_VERSION,
            "training_architecture": description.architecture,
            "training_architecture_details": dict(description.details),
            "model_name": description.model_name,
            "model_class_name": "TransformerBridge",
            "hook_name": description.hook_name,
            "context_size": description.context_size,
            "prepend_bos": True,
            "dataset_path": description.dataset_path,
        },
    }
    weights = save({name: np.ascontiguousarray(tensors[name]) for name in _SHAPES[kind]})
    return {CONFIG: json.dumps(config, indent=1).encode(), WEIGHTS: weights}


def from_files(files: Mapping[str, bytes]) -> InferenceSAE:
    """The SAE in the two files, ours or SAELens' own."""
    config, tensors = _translated(json_of(files, CONFIG)), safetensors_of(files, WEIGHTS)
    kind, scaling = config.get("architecture"), config.get("normalize_activations")
    if not isinstance(kind, str) or kind not in _SHAPES:
        raise InvalidSpec(f"{CONFIG} must name the architecture {', '.join(_SHAPES)}; it says {str(kind)[:50]}")
    if scaling not in (None, False, "none"):
        raise InvalidSpec(f"the SAE wants its input scaled ({str(scaling)[:50]}), which the files do not say how to fold in")
    weights = checked(_without_idle_scale(tensors), _SHAPES[kind])
    if kind == "gated":
        weights = ungated(weights)
    if flag_of(config, "apply_b_dec_to_input", default=True):
        weights = centred(weights)
    if kind != "topk":
        return assembled(weights)
    if flag_of(config, "rescale_acts_by_decoder_norm", default=False):
        weights = with_unit_decoder(weights)
    return assembled(weights, config.get("k", DEFAULT_K))


def sizes(folder: Path) -> tuple[int, int]:
    """d_in and d_sae."""
    return safetensors_shape(folder / WEIGHTS, "W_enc")


def _translated(config: dict[str, Any]) -> dict[str, Any]:
    """The config in the words of SAELens 6: before it, the activation function was a field of its own."""
    metadata = config.get("metadata")
    if "sae_lens_version" in {**config, **(metadata if isinstance(metadata, dict) else {})}:
        return config
    function, details = config.get("activation_fn_str", config.get("activation_fn", "relu")), config.get("activation_fn_kwargs")
    translated = {"architecture": "standard", **config}
    if function == "topk" and isinstance(details, dict) and "k" in details:
        return {**translated, "architecture": "topk", "k": details["k"]}
    return translated if function == "relu" else {**translated, "architecture": str(function)}


def _without_idle_scale(tensors: Tensors) -> Tensors:
    """The tensors without a scale of 1 for each latent, which some versions wrote and no reader applies."""
    scale = tensors.get("scaling_factor")
    if scale is None or not np.all(scale == 1):
        return tensors
    return {name: tensor for name, tensor in tensors.items() if name != "scaling_factor"}
