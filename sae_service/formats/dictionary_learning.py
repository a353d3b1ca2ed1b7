"""The layout of dictionary_learning 0.1: `ae.pt`, torch's format, and `config.json`.

A ReLU SAE is written as `AutoEncoder`, one with thresholds as `JumpReluAutoEncoder`, one with k as `AutoEncoderTopK`.
The first and the last subtract the decoder's bias from their input; the encoder's bias is written so that this changes
nothing. The library moves the decoder norms of an `AutoEncoder` into its encoder as it loads it, and so does the reader.

The library has no class for transcoders, and none is written. It trains its classes as transcoders where the buffer's
`io` is `in_and_out`, and what was trained so is not read.

Checked with dictionary_learning 0.1.0: `load_dictionary` reads ours, and ours reads all seven classes that it loads.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sae_service import readable
from sae_service.errors import DamagedCheckpoint, InvalidSpec
from sae_service.formats import torch_zip
from sae_service.formats.file_format import (
    Description,
    activation,
    assembled,
    checked,
    content_of,
    json_of,
    refuse_all_but_autoencoders,
)
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.weights import (
    COMPLETE,
    Shapes,
    Tensors,
    arrays,
    centred,
    of_autoencoder,
    uncentred,
    ungated,
    with_unit_decoder,
)

CONFIG, WEIGHTS = FILES = "config.json", "ae.pt"
_CLASSES = {"relu": "AutoEncoder", "jumprelu": "JumpReluAutoEncoder", "topk": "AutoEncoderTopK"}
_LAYERS: Shapes = {"encoder.weight": ("d_sae", "d_in"), "decoder.weight": ("d_in", "d_sae")}
_BIASED: Shapes = {**_LAYERS, "encoder.bias": ("d_sae",)}
_LATENT = ("d_sae",)
_COMPLETE = of_autoencoder(COMPLETE)


def to_files(sae: InferenceSAE, description: Description) -> dict[str, bytes]:
    """The two files. Raises InvalidSpec for what is no autoencoder."""
    refuse_all_but_autoencoders(sae, description, "dictionary_learning")
    kind, tensors = activation(sae), arrays(sae)
    d_in, d_sae = tensors["W_enc"].shape
    (hook_name,) = description.reads
    layer = re.match(r"blocks\.(\d+)\.", hook_name)
    trainer = {
        "dict_class": _CLASSES[kind],
        "activation_dim": d_in,
        "dict_size": d_sae,
        **({"k": sae.k} if kind == "topk" else {}),
        "lm_name": description.model_name,
        "layer": int(layer[1]) if layer else None,
        "submodule_name": hook_name,
        "training_architecture": description.architecture,
        "training_architecture_details": dict(description.details),
    }
    buffer = {"d_submodule": d_in, "io": "out", "ctx_len": description.context_size, "dataset_path": description.dataset_path}
    state = tensors if kind == "jumprelu" else _as_layers(tensors, sae.k)
    return {
        WEIGHTS: torch_zip.to_bytes(state, root="ae"),
        CONFIG: json.dumps({"trainer": trainer, "buffer": buffer}, indent=1).encode(),
    }


def _as_layers(tensors: Tensors, k: int | None) -> Tensors:
    """The state of an `AutoEncoder`, or with k of an `AutoEncoderTopK`."""
    layers = {
        "encoder.weight": tensors["W_enc"].T,
        "encoder.bias": uncentred(tensors["b_enc"], tensors["b_dec"], tensors["W_enc"]),
        "decoder.weight": tensors["W_dec"].T,
    }
    if k is None:
        return {"bias": tensors["b_dec"], **layers}
    # A negative threshold has seen no batch.
    return {"b_dec": tensors["b_dec"], "k": np.array(k, np.int32), "threshold": np.array(-1, np.float32), **layers}


def from_files(files: Mapping[str, bytes]) -> InferenceSAE:
    """The SAE in the two files, ours or the library's own."""
    buffer = json_of(files, CONFIG).get("buffer")
    if isinstance(buffer, dict) and buffer.get("io") == "in_and_out":
        raise InvalidSpec(f"{CONFIG} says that it is a transcoder (buffer.io is in_and_out), which is not read here")
    trainer = _trainer(files)
    if not isinstance(trainer.get("dict_class"), str):
        raise DamagedCheckpoint(f"{CONFIG} does not name the class at trainer.dict_class")
    name = trainer["dict_class"]
    if name not in _READERS:
        raise InvalidSpec(f"{CONFIG} must name one of the classes {', '.join(_READERS)}; it says {name[:50]}")
    return _READERS[name](torch_zip.from_bytes(content_of(files, WEIGHTS), WEIGHTS), trainer)


def sizes(folder: Path) -> tuple[int, int]:
    """d_in and d_sae, as the config has them: in the weights they stand behind a program."""
    try:
        trainer = _trainer({CONFIG: readable.content(folder / CONFIG)})
        return int(trainer["activation_dim"]), int(trainer["dict_size"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DamagedCheckpoint(f"{CONFIG} does not name trainer.activation_dim and dict_size: {error!r}") from error


def _trainer(files: Mapping[str, bytes]) -> dict[str, Any]:
    trainer = json_of(files, CONFIG).get("trainer")
    if not isinstance(trainer, dict):
        raise DamagedCheckpoint(f"{CONFIG} has no object trainer")
    return trainer


def _layered(state: Tensors, b_dec: str, shapes: Shapes = _BIASED, others: tuple[str, ...] = ()) -> Tensors:
    """Weights under our names, of a state that holds an encoder and a decoder as layers."""
    found = checked(state, {**shapes, b_dec: ("d_in",)}, others)
    names = {"encoder.bias": "b_enc", b_dec: "b_dec"}
    rest = {names.get(name, name): tensor for name, tensor in found.items() if name not in _LAYERS}
    matrices = {"W_enc": found["encoder.weight"], "W_dec": found["decoder.weight"]}
    return rest | {name: np.ascontiguousarray(matrix.T) for name, matrix in matrices.items()}


def _number(state: Tensors, name: str) -> Any:
    """The only number of a tensor."""
    if name not in state or state[name].size != 1:
        raise DamagedCheckpoint(f"{name} is not one number")
    return state[name].item()


def _with_one_threshold(weights: Tensors, state: Tensors) -> InferenceSAE:
    if "threshold" not in state:
        raise InvalidSpec(
            f"{WEIGHTS} has no threshold; it was written before dictionary_learning kept one, and without it the SAE chooses its "
            "latents over a whole batch.",
            hint="Measure the threshold that leaves k latents a row, and add it to the file as the tensor threshold.",
        )
    threshold = np.full_like(weights["b_enc"], _number(state, "threshold"))
    return assembled({**centred(weights), "threshold": threshold})


def _auto_encoder(state: Tensors, trainer: dict[str, Any]) -> InferenceSAE:
    return assembled(with_unit_decoder(centred(_layered(state, "bias"))))


def _auto_encoder_new(state: Tensors, trainer: dict[str, Any]) -> InferenceSAE:
    return assembled(_layered(state, "decoder.bias"))


def _gated(state: Tensors, trainer: dict[str, Any]) -> InferenceSAE:
    shapes = {**_LAYERS, "r_mag": _LATENT, "gate_bias": _LATENT, "mag_bias": _LATENT}
    weights = _layered(state, "decoder_bias", shapes)
    return assembled(centred(ungated({**weights, "b_gate": weights["gate_bias"], "b_mag": weights["mag_bias"]})))


def _jumprelu(state: Tensors, trainer: dict[str, Any]) -> InferenceSAE:
    return assembled(checked(state, {**_COMPLETE, "threshold": _LATENT}))


def _topk(state: Tensors, trainer: dict[str, Any]) -> InferenceSAE:
    k = trainer.get("k")
    if "k" in state and _number(state, "k") != k:
        raise DamagedCheckpoint(f"{CONFIG} and {WEIGHTS} differ in k")
    return assembled(centred(_layered(state, "b_dec", others=("k", "threshold"))), k)


def _batch_topk(state: Tensors, trainer: dict[str, Any]) -> InferenceSAE:
    return _with_one_threshold(_layered(state, "b_dec", others=("k", "threshold")), state)


def _matryoshka(state: Tensors, trainer: dict[str, Any]) -> InferenceSAE:
    return _with_one_threshold(checked(state, _COMPLETE, others=("k", "threshold", "group_sizes")), state)


_READERS: dict[str, Callable[[Tensors, dict[str, Any]], InferenceSAE]] = {
    "AutoEncoder": _auto_encoder,
    "AutoEncoderNew": _auto_encoder_new,
    "GatedAutoEncoder": _gated,
    "JumpReluAutoEncoder": _jumprelu,
    "AutoEncoderTopK": _topk,
    "BatchTopKSAE": _batch_topk,
    "MatryoshkaBatchTopKSAE": _matryoshka,
}
