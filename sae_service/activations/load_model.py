"""Loads a language model as a TransformerLens bridge."""

from functools import partial
from typing import Any

import torch

from sae_service.activations import model_files
from sae_service.activations.blame import blamed
from sae_service.errors import ModelNotFound, translated
from sae_service.hub import check_model, wait_for
from sae_service.readable import Roots
from sae_service.spec import ModelSpec, fields, is_path


def load_bridge(spec: ModelSpec, device: str, roots: Roots) -> Any:
    """The bridge. Raises ModelNotFound, at once where there is no network, InvalidSpec outside of `roots`, and OutOfMemory."""
    from transformer_lens import TransformerBridge

    if is_path(spec.name):
        name = str(model_files.checked_folder(spec.name, roots)[0])
    else:
        name = spec.name
        model_files.check_hub_name(name)
        _check_hub(spec)
    dtype = getattr(torch, spec.dtype)
    with blamed(ModelNotFound, f"cannot load {spec.name}", fields.MODEL_NAME):
        with translated(partial(_of_weights, spec.name)):
            bridge = TransformerBridge.boot_transformers(
                name, device=device, dtype=dtype, revision=spec.revision, tokenizer=_no_text()
            )
        _complete(bridge, dtype)
    return bridge


def _of_weights(name: str, error: Exception) -> ModelNotFound | None:
    """The error for weights that torch does not read without running them, which is what its own message advises."""
    if "weights_only" not in str(error):
        return None
    message = f"cannot load {name}: its weights (*.bin) hold more than tensors, or are broken."
    return ModelNotFound(message, fields.MODEL_NAME, "Save them as safetensors.")


def _no_text() -> Any:
    """A tokenizer for the bridge, which wants one and never sees text."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"?": 0}, unk_token="?")))


def _complete(bridge: Any, dtype: torch.dtype) -> None:
    """Switches on what costs nothing, and rounds queries and keys after the rotation as the published models do.

    Without the latter OLMo runs in no dtype but float32: its rotation gives float32, which its weights cannot take.
    """
    bridge.set_use_hook_mlp_in(True)
    for name in bridge.hook_dict if dtype != torch.float32 else ():
        if name.endswith(("attn.hook_rot_q", "attn.hook_rot_k")):
            bridge.add_perma_hook(name, lambda rows, hook: rows.to(dtype))


def _check_hub(spec: ModelSpec) -> None:
    """Raises ModelNotFound if a hub model is neither in the local cache nor on the hub, or the hub stays away."""
    try:
        wait_for(check_model, spec.name, spec.revision)
    except ConnectionError as error:
        hint = "Give a folder in Hugging Face format instead; its name starts with '/', '.' or '~'."
        message = f"{spec.name} is not on this machine, and {error}"
        raise ModelNotFound(message, fields.MODEL_NAME, hint) from error
