"""Algebra of an SAE's weights in NumPy, which touches no device."""

from collections.abc import Mapping

import numpy as np

from sae_service.sae.inference import InferenceSAE

Tensors = dict[str, np.ndarray]
Shapes = Mapping[str, tuple[str, ...]]
"""The axes of each tensor by name; axes of the same name have the same length."""
MATRICES: Shapes = {"W_enc": ("d_read", "d_sae"), "W_dec": ("d_sae", "d_write")}
COMPLETE: Shapes = {**MATRICES, "b_enc": ("d_sae",), "b_dec": ("d_write",)}


def of_autoencoder(shapes: Shapes) -> Shapes:
    """The same shapes where as many numbers are written as are read."""
    both = {"d_read": "d_in", "d_write": "d_in"}
    return {name: tuple(both.get(axis, axis) for axis in axes) for name, axes in shapes.items()}


def arrays(sae: InferenceSAE) -> Tensors:
    """The weights, biases and thresholds as float32, and the bypass's matrix if there is one."""
    names = (*COMPLETE, "threshold") if sae.W_skip is None else (*COMPLETE, "threshold", "W_skip")
    return {name: np.asarray(getattr(sae, name), np.float32) for name in names}


def uncentred(b_enc: np.ndarray, b_dec: np.ndarray, W_enc: np.ndarray) -> np.ndarray:
    """The encoder's bias for a reader that subtracts `b_dec` from its input first."""
    return (b_enc + np.einsum("i,ij->j", b_dec, W_enc, dtype=np.float64)).astype(np.float32)


def centred(weights: Tensors) -> Tensors:
    """The weights of an SAE that subtracts `b_dec` from its input, with that subtraction folded into `b_enc`."""
    return {**weights, "b_enc": uncentred(weights["b_enc"], -weights["b_dec"], weights["W_enc"])}


def with_unit_decoder(weights: Tensors) -> Tensors:
    """The weights with the norms of the decoder's rows moved into the encoder; the reconstruction stays."""
    norms = np.linalg.norm(weights["W_dec"], axis=1)
    unit = weights["W_dec"] / np.where(norms == 0, 1, norms)[:, None]
    return {**weights, "W_enc": weights["W_enc"] * norms, "b_enc": weights["b_enc"] * norms, "W_dec": unit}


def ungated(weights: Tensors) -> Tensors:
    """A gate and a magnitude that share their encoder, as one encoder with thresholds.

    The magnitude is increasing in the gate, so that the gate opens where the magnitude is above a threshold.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        gain = np.exp(weights["r_mag"])
        threshold = weights["b_mag"] - gain * weights["b_gate"]
        shared = {name: weights[name] for name in ("W_dec", "b_dec")}
        return {**shared, "W_enc": weights["W_enc"] * gain, "b_enc": weights["b_mag"], "threshold": threshold}
