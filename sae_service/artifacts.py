"""An SAE as files that other tools read: `cfg.json` and `sae_weights.safetensors` in the layout of SAELens 6.

A ReLU SAE is written as `standard`, one with k as `topk`, every SAE with thresholds as `jumprelu`, whatever trained
it. Scale, decoder
norms and pre-encoder bias are folded in, so a reader applies nothing to its input.
"""

import json
import math
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from sae_service.errors import DamagedCheckpoint
from sae_service.sae import InferenceSAE
from sae_service.spec import JobSpec, SAESpec

CONFIG, WEIGHTS, METRICS, PROVENANCE = "cfg.json", "sae_weights.safetensors", "metrics.json", "provenance.json"
SAE_LENS_VERSION = "6.54.12"


def to_files(sae: InferenceSAE, job: JobSpec, spec: SAESpec, provenance: dict[str, Any]) -> dict[str, bytes]:
    """The files of one SAE by name."""
    tensors = {name: np.asarray(getattr(sae, name), np.float32) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    threshold = np.asarray(sae.threshold, np.float32)
    architecture: dict[str, Any] = {"architecture": "standard"}
    if sae.k is not None:
        architecture = {"architecture": "topk", "k": sae.k, "rescale_acts_by_decoder_norm": False}
    elif np.any(threshold):
        architecture = {"architecture": "jumprelu"}
        tensors["threshold"] = threshold
    config = {
        **architecture,
        "d_in": int(sae.W_enc.shape[0]),
        "d_sae": int(sae.W_enc.shape[1]),
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if spec.hook_name.endswith("hook_z") else "none",
        "metadata": {
            "sae_lens_version": SAE_LENS_VERSION,
            "training_architecture": spec.architecture.kind,
            "training_architecture_details": spec.architecture.model_dump(),
            "model_name": job.stream.model.name if job.stream.model else "synthetic",
            "model_class_name": "TransformerBridge",
            "hook_name": spec.hook_name,
            "context_size": job.stream.context_size,
            "prepend_bos": True,
            "dataset_path": job.stream.dataset.path if job.stream.dataset else "synthetic",
        },
    }
    return {
        CONFIG: json.dumps(config, indent=1).encode(),
        WEIGHTS: save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}),
        PROVENANCE: json.dumps(provenance, indent=1).encode(),
    }


def from_files(files: dict[str, bytes]) -> InferenceSAE:
    """The SAE in `files` that `to_files` wrote. Raises DamagedCheckpoint."""
    try:
        tensors = load(files[WEIGHTS])
        threshold = tensors.get("threshold", np.zeros_like(tensors["b_enc"]))
        k = json.loads(files[CONFIG]).get("k")
        weights: dict[str, Any] = {name: tensors[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        return InferenceSAE(**weights, threshold=threshold, k=k)  # pyright: ignore[reportArgumentType]
    except (KeyError, ValueError, SafetensorError) as error:
        raise DamagedCheckpoint(f"these are not the files of an SAE: {error}") from error


def as_json(metrics: dict[str, Any]) -> bytes:
    """Metrics as strict JSON."""
    return json.dumps(finite_or_null(metrics), indent=1).encode()


def finite_or_null(value: Any) -> Any:
    """`value` with None in place of every NaN and infinity, which JSON does not know."""
    if isinstance(value, dict):
        return {key: finite_or_null(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_or_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
