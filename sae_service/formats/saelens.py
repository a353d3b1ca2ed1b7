"""The layout of SAELens 6: `cfg.json` and `sae_weights.safetensors`.

A ReLU SAE is written as `standard`, one with k as `topk`, every SAE with thresholds as `jumprelu`, whatever trained
it. Scale, decoder norms and pre-encoder bias are folded in, so a reader applies nothing to its input.

A transcoder is `transcoder`, with a bypass `skip_transcoder`, with thresholds `jumprelu_transcoder` or
`jumprelu_skip_transcoder`. `metadata` names what it reads (`hook_name`) and writes (`hook_name_out`), and `W_skip` is
(d_out, d_in), the transpose of ours. SAELens' `forward` adds what the bypass carries; its `decode` does not.

SAELens has no class for a transcoder with k, nor for crosscoders, and `to_files` refuses them. A checkpoint keeps them
all the same (`to_own_files`), in the same two files under names of our own: `topk_transcoder`, `topk_skip_transcoder`,
and `crosscoder` with the same prefixes. A crosscoder's `metadata` has `reads` and `writes`, the widths of its hook
points by name in the order in which their rows lie side by side. SAELens refuses those names, and ours reads them.

A checkpoint of SAELens' own training of `batchtopk` or `matryoshka_batchtopk` is read as SAELens converts it when training
ends: `topk_threshold` becomes the threshold of every latent.

Checked with sae-lens 6.54.12: it reads the seven kinds that `to_files` writes, and ours reads its standard, gated,
jumprelu, topk and four transcoders. Configs from before SAELens 6 are translated, but no file of that age was tried. The
training checkpoints were written after its source, and not by it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from sae_service.errors import DamagedCheckpoint, InvalidSpec
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
from sae_service.sae.sites import Sites, Widths
from sae_service.sae.weights import COMPLETE, MATRICES, Shapes, Tensors, arrays, centred, of_autoencoder, ungated, with_unit_decoder

CONFIG, WEIGHTS = FILES = "cfg.json", "sae_weights.safetensors"
SAE_LENS_VERSION = "6.54.12"
DEFAULT_K = 100
"""What SAELens takes where a config of kind `topk` has no k."""

_AUTOENCODERS = {"relu": "standard", "jumprelu": "jumprelu", "topk": "topk"}
_TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
_PREFIXES = {"relu": "", "jumprelu": "jumprelu_", "topk": "topk_"}
_FORMS = ("transcoder", "crosscoder")
_IN_TRAINING = ("batchtopk", "matryoshka_batchtopk")
_SCALINGS = {
    "expected_average_only_in": (
        "by one number for all rows, which these files do not hold",
        "Fold it in with SAELens (fold_activation_norm_scaling_factor) and save it again.",
    ),
    "constant_norm_rescale": ("row by row, to one norm", "No SAE here does that to its input."),
    "layer_norm": ("row by row, to mean 0 and variance 1", "No SAE here does that to its input."),
}
"""How SAELens scales an SAE's input, and what to do."""
_LATENT = ("d_sae",)
_BYPASS: Shapes = {"W_skip": ("d_write", "d_read")}
_SHAPES: dict[str, Shapes] = {
    "standard": of_autoencoder(COMPLETE),
    "topk": of_autoencoder(COMPLETE),
    "jumprelu": of_autoencoder({**COMPLETE, "threshold": _LATENT}),
    **dict.fromkeys(_IN_TRAINING, of_autoencoder({**COMPLETE, "topk_threshold": ()})),
    "gated": of_autoencoder({**MATRICES, "b_dec": ("d_write",), "r_mag": _LATENT, "b_gate": _LATENT, "b_mag": _LATENT}),
    **{
        prefix + skip + name: {**COMPLETE, **thresholds, **bypass}
        for name in _FORMS
        for prefix, thresholds in (("", {}), ("topk_", {}), ("jumprelu_", {"threshold": _LATENT}))
        for skip, bypass in (("", {}), ("skip_", _BYPASS))
    },
}


def to_files(sae: InferenceSAE, description: Description) -> dict[str, bytes]:
    """The two files. Raises InvalidSpec for a transcoder with k, and for a crosscoder."""
    kind = _kind(sae, description)
    if kind not in (*_AUTOENCODERS.values(), *_TRANSCODERS):
        fits_sparsify = form(sae, description) == "transcoder"
        hint = "Write it as sparsify, or download it without a format." if fits_sparsify else OWN_FILES
        raise InvalidSpec(f"SAELens has no class for this SAE, a {kind}", hint=hint)
    return to_own_files(sae, description)


def to_own_files(sae: InferenceSAE, description: Description) -> dict[str, bytes]:
    """The two files of any SAE: as SAELens has them, or under a name of our own where it has none."""
    config, tensors = content(sae, description)
    return {CONFIG: config, WEIGHTS: save({name: np.ascontiguousarray(array) for name, array in tensors.items()})}


def content(sae: InferenceSAE, description: Description) -> tuple[bytes, Tensors]:
    """What `to_own_files` writes: the config, and the arrays of the weights."""
    kind, tensors = _kind(sae, description), arrays(sae)
    d_in, d_sae = tensors["W_enc"].shape
    is_autoencoder = form(sae, description) == "autoencoder"
    config: dict[str, Any] = {
        "architecture": kind,
        **({"k": sae.k} if sae.k else {}),
        **({"rescale_acts_by_decoder_norm": False} if kind == "topk" else {}),
        "d_in": d_in,
        **({} if is_autoencoder else {"d_out": tensors["W_dec"].shape[1]}),
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if is_autoencoder and description.reads[0].endswith("hook_z") else "none",
        "metadata": {
            "sae_lens_version": SAE_LENS_VERSION,
            "training_architecture": description.architecture,
            "training_architecture_details": dict(description.details),
            "model_name": description.model_name,
            "model_class_name": "TransformerBridge",
            **_hook_points(sae, description),
            "context_size": description.context_size,
            "prepend_bos": True,
            "dataset_path": description.dataset_path,
        },
    }
    turned = {**tensors, "W_skip": tensors["W_skip"].T} if "W_skip" in tensors else tensors
    return json.dumps(config, indent=1).encode(), {name: turned[name] for name in _SHAPES[kind]}


def _kind(sae: InferenceSAE, description: Description) -> str:
    """SAELens' name of what it has, and ours of what it has not."""
    found, chosen = form(sae, description), activation(sae)
    if found == "autoencoder":
        return _AUTOENCODERS[chosen]
    return f"{_PREFIXES[chosen]}{'' if sae.W_skip is None else 'skip_'}{found}"


def _hook_points(sae: InferenceSAE, description: Description) -> dict[str, Any]:
    """What the metadata says about them."""
    match form(sae, description):
        case "autoencoder":
            return {"hook_name": description.reads[0]}
        case "transcoder":
            return {"hook_name": description.reads[0], "hook_name_out": description.writes[0]}
        case "crosscoder":
            assert sae.sites is not None, "only its sites know the widths of a crosscoder's hook points"
            return {"reads": dict(sae.sites.read), "writes": dict(sae.sites.write)}


def from_files(files: Mapping[str, bytes]) -> InferenceSAE:
    """The SAE in the two files, ours or SAELens' own."""
    config, tensors = _translated(json_of(files, CONFIG)), safetensors_of(files, WEIGHTS)
    kind, scaling = config.get("architecture"), config.get("normalize_activations")
    if not isinstance(kind, str) or kind not in _SHAPES:
        raise InvalidSpec(f"{CONFIG} must name the architecture {', '.join(_SHAPES)}; it says {str(kind)[:50]}")
    if scaling not in (None, False, "none"):
        how, hint = _SCALINGS.get(str(scaling), ("in a way that is not known here", ""))
        raise InvalidSpec(f"the SAE wants its input scaled {how} (normalize_activations: {str(scaling)[:50]}).", hint=hint)
    weights = _folded(checked(_without_idle_scale(tensors), _SHAPES[kind]), kind, config)
    k = config.get("k", DEFAULT_K) if kind.startswith("topk") else None
    return assembled(weights, k, _sites(weights, kind, config))


def _folded(weights: Tensors, kind: str, config: dict[str, Any]) -> Tensors:
    """The weights for a reader that does nothing but what `InferenceSAE` does."""
    is_autoencoder = not kind.endswith(_FORMS)
    if kind == "gated":
        weights = ungated(weights)
    if flag_of(config, "apply_b_dec_to_input", default=is_autoencoder):
        if not is_autoencoder:
            raise InvalidSpec(f"a {kind} cannot subtract b_dec from its input, as apply_b_dec_to_input says")
        weights = centred(weights)
    if kind in ("topk", *_IN_TRAINING) and flag_of(config, "rescale_acts_by_decoder_norm", default=kind != "topk"):
        weights = with_unit_decoder(weights)
    if kind in _IN_TRAINING:
        threshold = np.full_like(weights["b_enc"], weights["topk_threshold"].item())
        weights = {name: tensor for name, tensor in weights.items() if name != "topk_threshold"} | {"threshold": threshold}
    return {**weights, "W_skip": np.ascontiguousarray(weights["W_skip"].T)} if "W_skip" in weights else weights


def _sites(weights: Tensors, kind: str, config: dict[str, Any]) -> Sites | None:
    """The hook points as the metadata has them, or as the config itself had them before SAELens 6."""
    metadata = config.get("metadata")
    said = {**config, **(metadata if isinstance(metadata, dict) else {})}
    if not kind.endswith("crosscoder"):
        return sites_named(weights, said.get("hook_name"), said.get("hook_name_out"), kind.endswith("transcoder"))
    d_read, d_write = weights["W_enc"].shape[0], weights["W_dec"].shape[1]
    return Sites(_widths(said.get("reads"), d_read), _widths(said.get("writes"), d_write))


def _widths(said: Any, total: int) -> Widths:
    """Hook points with their widths, which must add up."""
    is_right = isinstance(said, dict) and all(type(width) is int and width > 0 for width in said.values())
    if not is_right or sum(said.values()) != total:
        raise DamagedCheckpoint(f"{CONFIG} must name the hook points of a crosscoder with widths that add up to {total}")
    return tuple(said.items())


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
