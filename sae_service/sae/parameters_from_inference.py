"""From an SAE's public form back to what training starts from: what several architectures share.

Every function is exact, or refuses with InvalidSpec, whose `param` is a pointer below the SAE. Plain NumPy, so that the
API can ask whether a start is possible without touching a device.
"""

from typing import Any

import numpy as np

from sae_service.errors import InvalidSpec
from sae_service.sae.coder import Coder
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.weights import Tensors, arrays, uncentred, with_unit_decoder
from sae_service.schema import ArchitectureConfig, BypassConfig

KIND, K, SKIP = "/architecture/kind", "/architecture/k", "/architecture/skip"
NORM_TOLERANCE = 1e-3
THRESHOLD_TOLERANCE = 1e-5


def thresholded(sae: InferenceSAE) -> Tensors:
    """The weights of an SAE without k. Thresholds below 0 become 0, which is the same."""
    if sae.k is not None:
        raise InvalidSpec(f"the SAE keeps the {sae.k} largest latents of each row, which only the kind topk does", KIND)
    weights = arrays(sae)
    if not np.all(np.isfinite(weights["threshold"])):
        raise InvalidSpec("the SAE has latents with an infinite threshold, which cannot be trained")
    return {**weights, "threshold": np.maximum(weights["threshold"], 0)}


def without_thresholds(sae: InferenceSAE) -> Tensors:
    """The weights of an SAE whose latents fire wherever they are above 0."""
    weights = thresholded(sae)
    if np.any(weights["threshold"] > 0):
        raise InvalidSpec("the SAE has thresholds above 0, and this kind has none: take jumprelu or gated", KIND)
    return weights


def with_thresholds(sae: InferenceSAE) -> Tensors:
    """The weights of an SAE whose latents all have a threshold above 0, which can be learned as its logarithm."""
    weights = thresholded(sae)
    n_without = int(np.sum(weights["threshold"] <= 0))
    if n_without:
        detail = f"{n_without} of the SAE's latents have no threshold above 0, and this kind learns its logarithm: take gated"
        raise InvalidSpec(f"{detail}, or standard where no latent has one", KIND)
    return weights


def with_one_threshold(sae: InferenceSAE) -> Tensors:
    """The weights, with decoder rows of norm 1, of an SAE whose latents then all have the same threshold."""
    weights = unit(thresholded(sae))
    if not np.allclose(weights["threshold"], weights["threshold"][0], rtol=THRESHOLD_TOLERANCE, atol=0):
        raise InvalidSpec("the SAE's latents have different thresholds, and this kind has one: take jumprelu or gated", KIND)
    return weights


def with_k(sae: InferenceSAE, k: float) -> Tensors:
    """The weights, with decoder rows of norm 1, of an SAE that keeps the `k` largest latents of each row."""
    weights = arrays(sae)
    if sae.k is None or np.any(weights["threshold"] > 0):
        raise InvalidSpec("the SAE has no k, or thresholds beside it: take another kind", KIND)
    if sae.k != k:
        raise InvalidSpec(f"must be {sae.k}, as in the SAE that it starts from", K)
    norms = np.linalg.norm(weights["W_dec"], axis=1)
    if norms.max() > norms.min() * (1 + NORM_TOLERANCE):
        detail = f"the SAE's decoder rows have norms from {norms.min():.3g} to {norms.max():.3g}"
        raise InvalidSpec(f"{detail}; this kind has rows of norm 1, and to make them so changes which latents are kept", KIND)
    return unit(weights)


def unit(weights: Tensors) -> Tensors:
    """The weights with decoder rows of norm 1; encoder, biases and thresholds take the norms up."""
    norms = np.linalg.norm(weights["W_dec"], axis=1)
    return {**with_unit_decoder(weights), "threshold": weights["threshold"] * np.where(norms == 0, 1, norms)}


def plain_coder(sae: InferenceSAE, weights: Tensors) -> Coder:
    """The coder of weights, at the sites of the SAE."""
    assert sae.sites is not None
    parts: Any = {name: tensor for name, tensor in weights.items() if name != "threshold"}
    return Coder(**parts, sites=sae.sites)


def centred_coder(sae: InferenceSAE, weights: Tensors) -> Coder:
    """The coder that, if it is an autoencoder, subtracts `b_dec` from its input."""
    coder: Any = plain_coder(sae, weights)
    if not coder.sites.is_autoencoder:
        return coder
    return coder.replace(b_enc=uncentred(weights["b_enc"], weights["b_dec"], weights["W_enc"]))


def logarithms(weights: Tensors) -> Any:
    """The logarithms of the thresholds."""
    return np.log(weights["threshold"])


def zeros(*shape: int) -> Any:
    """Zeros of a shape, not on a device."""
    return np.zeros(shape, np.float32)


def number(value: Any) -> Any:
    """One number, not on a device."""
    return np.asarray(value, np.float32)


def bypass(config: ArchitectureConfig, sae: InferenceSAE) -> InferenceSAE:
    """The SAE, with a bypass of zeros if it has none and its config wants one. Raises InvalidSpec the other way round."""
    if sae.W_skip is not None and not isinstance(config, BypassConfig):
        raise InvalidSpec("the SAE has a bypass, which this kind cannot have: take standard, jumprelu or topk", KIND)
    wanted = isinstance(config, BypassConfig) and config.skip
    if sae.W_skip is not None and not wanted:
        raise InvalidSpec("must be true: the SAE that it starts from has a bypass", SKIP)
    if not wanted or sae.W_skip is not None:
        return sae
    return sae.replace(W_skip=zeros(sae.W_enc.shape[0], sae.W_dec.shape[1]))
