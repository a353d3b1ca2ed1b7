"""What a model does between its residual stream and its tokens, as NumPy arrays: for reading directions as tokens."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from sae_service.activations.model import LanguageModel

TOLERANCE = 0.02


@dataclass(frozen=True)
class Unembedding:
    """The final norm without its scale, and the matrices of tokens.

    Attributes:
        gain: what the final norm multiplies each dimension with.
        is_centred: whether it subtracts the mean over the dimensions first.
        W_U: from the residual stream to the logits.
        W_E: from the tokens to the residual stream.
    """

    gain: Float[np.ndarray, " d_model"]
    is_centred: bool
    W_U: Float[np.ndarray, "d_model n_vocab"]
    W_E: Float[np.ndarray, "n_vocab d_model"]


def unembedding(model: LanguageModel) -> Unembedding | None:
    """That of a model, or None if its final norm is none that is known here."""
    bridge = model.bridge
    try:
        W_U, W_E, norm = _array(bridge.W_U), _array(bridge.W_E), bridge.ln_final
        weight = getattr(norm, "weight", None)
        d_model = W_U.shape[0]
        if W_E.shape[1] != d_model or W_E.shape[0] < W_U.shape[1]:
            return None
    except AttributeError:
        return None
    found = _norm(norm, W_U, np.ones(d_model, np.float32) if weight is None else _array(weight), bridge)
    return None if found is None else Unembedding(*found, W_U, W_E[: W_U.shape[1]])


def _norm(norm: Any, W_U: np.ndarray, weight: np.ndarray, bridge: Any) -> tuple[np.ndarray, bool] | None:
    """The gain, and whether the mean is subtracted: whichever explains what the norm makes of a few rows.

    Families write the same norm in several ways: Gemma's weight is one less than its gain.
    """
    rows = np.random.default_rng(0).normal(size=(3, len(weight))).astype(np.float32) + 1
    tensor = next(iter(bridge.parameters()))
    normed = _array(norm(tensor.new_tensor(rows)[None]))[0]
    # Without its bias, if it has one: the difference of two rows has none.
    for is_centred in (False, True):
        centred = rows - rows.mean(axis=1, keepdims=True) if is_centred else rows
        unit = centred / np.sqrt(np.square(centred).mean(axis=1, keepdims=True))
        for gain in (weight, weight + 1):
            wanted, found = (unit[0] - unit[1:]) * gain, normed[0] - normed[1:]
            if np.linalg.norm(wanted - found) <= TOLERANCE * np.linalg.norm(found):
                return gain.astype(np.float32), is_centred
    return None


def _array(tensor: Any) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()
