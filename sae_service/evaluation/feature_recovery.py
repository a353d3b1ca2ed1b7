"""How far an SAE has found features that are known: directions, and when they fire.

Sources: Sharkey et al. 2022 (mean max cosine similarity); Chanin et al. 2025, SynthSAEBench (MCC, uniqueness, F1).
Cosines are signed, except in MCC. Plain NumPy: nothing here is differentiated.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import linear_sum_assignment

BINS = 50
FOUND = 0.9
CONTROL_SEED = 0


def similarity(
    truth: Float[np.ndarray, "n_features d_in"], learned: Float[np.ndarray, "d_sae d_in"]
) -> dict[str, Any]:
    """How alike two sets of directions are, in both directions.

    mmcs_truth_to_learned: mean over the first set of the best cosine in the second (recall-like);
    mmcs_learned_to_truth: the reverse (precision-like). Each with the histogram of the maxima on [-1, 1] and the
    share of them above 0.9. uniqueness: distinct best matches of the second set over its size.
    """
    cosines = _unit(truth) @ _unit(learned).T
    found: dict[str, Any] = {}
    for name, maxima in (("truth_to_learned", cosines.max(axis=1)), ("learned_to_truth", cosines.max(axis=0))):
        # Rounding takes the cosine of equal directions beyond 1.
        counts, _ = np.histogram(np.clip(maxima, -1, 1), bins=BINS, range=(-1, 1))
        found[f"mmcs_{name}"] = float(maxima.mean())
        found[f"found_share_{name}"] = float((maxima > FOUND).mean())
        found[f"max_cosines_{name}"] = counts.tolist()
    best = cosines.argmax(axis=0)
    return found | {"uniqueness": len(set(best.tolist())) / len(best)}


def assignment(
    truth: Float[np.ndarray, "n_features d_in"], learned: Float[np.ndarray, "d_sae d_in"]
) -> dict[str, float]:
    """mcc: mean |cosine| of the best one-to-one assignment. Its time grows with the cube of the smaller set."""
    absolute = np.abs(_unit(truth) @ _unit(learned).T)
    return {"mcc": float(absolute[linear_sum_assignment(absolute, maximize=True)].mean())}


def random_directions(d_sae: int, d_in: int) -> Float[np.ndarray, "d_sae d_in"]:
    """Unit rows, always the same: the control, what is not better than with these was not learned."""
    return _unit(np.random.default_rng(CONTROL_SEED).normal(size=(d_sae, d_in)))


def control(truth: Float[np.ndarray, "n_features d_in"], d_sae: int) -> dict[str, Any]:
    """What `similarity` and `assignment` find for as many random directions."""
    random = random_directions(d_sae, truth.shape[1])
    return similarity(truth, random) | assignment(truth, random)


def detection(
    truth: Float[np.ndarray, "n_features d_in"], learned: Float[np.ndarray, "d_sae d_in"],
    present: Bool[np.ndarray, "rows n_features"], fires: Bool[np.ndarray, "rows d_sae"],
) -> dict[str, float]:  # fmt: skip
    """Precision, recall and F1 of each latent as a detector of its best-matching feature, averaged over latents."""
    best = (_unit(truth) @ _unit(learned).T).argmax(axis=0)
    wanted = present[:, best]
    both = (wanted & fires).sum(axis=0)
    precision = both / np.maximum(fires.sum(axis=0), 1)
    recall = both / np.maximum(wanted.sum(axis=0), 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return {"precision": float(precision.mean()), "recall": float(recall.mean()), "f1": float(f1.mean())}


def readout(
    truth: Float[np.ndarray, "n_features d_in"], learned: Float[np.ndarray, "d_sae d_in"],
    strengths: Float[np.ndarray, "rows n_features"], acts: Float[np.ndarray, "rows d_sae"],
) -> dict[str, float]:  # fmt: skip
    """Mean squared error per feature of reading its strength from the best-matching latent, scaled and shifted at its best."""
    best = (_unit(truth) @ _unit(learned).T).argmax(axis=1)
    return {"readout_mse": _scaled_error(acts[:, best], strengths - strengths.mean(axis=0))}


def baselines(
    truth: Float[np.ndarray, "n_features d_in"], strengths: Float[np.ndarray, "rows n_features"],
    x: Float[np.ndarray, "rows d_in"],
) -> dict[str, float]:  # fmt: skip
    """How many features are present, and the error of reading their strengths without an SAE: from the projection on the
    feature's direction, from the best affine map of x, from the mean.
    """
    centred = strengths - strengths.mean(axis=0)
    design = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    solution, *_ = np.linalg.lstsq(design, strengths, rcond=None)
    return {
        "l0_truth": float((strengths > 0).sum(axis=1).mean()),
        "readout_mse_projection": _scaled_error(x @ _unit(truth).T, centred),
        "readout_mse_affine": float(np.mean((strengths - design @ solution) ** 2)),
        "readout_mse_mean": float(np.mean(centred**2)),
    }


def _scaled_error(values: np.ndarray, centred: np.ndarray) -> float:
    """Error of the best a * value + b, feature by feature."""
    values = values - values.mean(axis=0)
    squares = (values**2).sum(axis=0)
    slopes = (values * centred).sum(axis=0) / np.where(squares > 0, squares, 1)
    return float(np.mean((centred - slopes * values) ** 2))


def _unit(matrix: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    return matrix / np.where(norms > 0, norms, 1)
