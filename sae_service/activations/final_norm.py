"""The scale of a model's final norm on given rows: what makes a difference of logits no linear function of the last rows."""

from typing import Any

import numpy as np
from jaxtyping import Float

from sae_service.activations.model import LanguageModel
from sae_service.activations.unembedding import Unembedding

SITE = "ln_final.hook_in"
"""The hook point of what the final norm reads."""


def inverse_scales(model: LanguageModel, known: Unembedding, rows: Float[np.ndarray, "rows d_model"]) -> Float[np.ndarray, " rows"]:
    """What the norm multiplies each row with, once it is centred if the norm centres, and beside its gain.

    It is measured on what the norm makes of the rows, since families keep its epsilon under many names.
    """
    zero = np.zeros_like(rows[:1])
    normed = _normed(model, np.concatenate([zero, rows]))
    without_bias = normed[1:] - normed[:1]
    wanted = centred(known, rows) * known.gain
    return (without_bias * wanted).sum(axis=1) / np.maximum(np.square(wanted).sum(axis=1), np.finfo(np.float64).tiny)


def centred(known: Unembedding, rows: Float[np.ndarray, "... d_model"]) -> Float[np.ndarray, "... d_model"]:
    """The rows without their means over the dimensions, if the norm takes these away; in float64."""
    rows = rows.astype(np.float64)
    return rows - rows.mean(axis=-1, keepdims=True) if known.is_centred else rows


def contrast(known: Unembedding, first: int, second: int) -> Float[np.ndarray, " d_model"]:
    """The direction whose product with a row, times the scale of the norm, is the difference of two logits but for biases."""
    direction = known.gain.astype(np.float64) * (known.W_U[:, first].astype(np.float64) - known.W_U[:, second])
    return direction - direction.mean() if known.is_centred else direction


def _normed(model: LanguageModel, rows: np.ndarray) -> np.ndarray:
    tensor: Any = next(iter(model.bridge.parameters()))
    with model.computing():
        return model.bridge.ln_final(tensor.new_tensor(rows)[None])[0].double().cpu().numpy()
