"""How far an SAE has found features that are known: directions, and when they fire.

Sources: Sharkey et al. 2022 (mean max cosine similarity); Chanin et al. 2025, SynthSAEBench (MCC, uniqueness, F1).
Cosines are signed, except in MCC. Plain NumPy: nothing here is differentiated.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

from sae_service.evaluation.tally import Tally

BINS = 50
FOUND = 0.9
CONTROL_SEED = 0
Best = Int[np.ndarray, " n"]


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


def best_features(truth: Float[np.ndarray, "n_features d_in"], learned: Float[np.ndarray, "d_sae d_in"]) -> Best:
    """The feature that each latent resembles most."""
    return (_unit(truth) @ _unit(learned).T).argmax(axis=0)


def best_latents(truth: Float[np.ndarray, "n_features d_in"], learned: Float[np.ndarray, "d_sae d_in"]) -> Best:
    """The latent that resembles each feature most."""
    return (_unit(truth) @ _unit(learned).T).argmax(axis=1)


def detection(
    both: Float[np.ndarray, " d_sae"], fires: Float[np.ndarray, " d_sae"], present: Float[np.ndarray, " d_sae"]
) -> dict[str, float]:
    """Precision, recall and F1 of each latent as a detector of its best-matching feature, averaged over latents.

    Args:
        both: on how many rows the latent fires and the feature is present; `fires`, `present`: each of the two.
    """
    precision = both / np.maximum(fires, 1)
    recall = both / np.maximum(present, 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return {"precision": float(precision.mean()), "recall": float(recall.mean()), "f1": float(f1.mean())}


class Readout:
    """How well the strength of each feature can be read from one value, scaled and shifted at its best."""

    def __init__(self) -> None:
        """Has seen no rows."""
        self._n_rows = 0
        self._tally = Tally()

    def add(
        self, values: Float[np.ndarray, "rows n_features"], strengths: Float[np.ndarray, "rows n_features"]
    ) -> None:
        """Counts some rows."""
        v, s = values.astype(np.float64), strengths.astype(np.float64)
        self._n_rows += len(v)
        self._tally.add({"v": v.sum(axis=0), "s": s.sum(axis=0), "vv": (v * v).sum(axis=0), "vs": (v * s).sum(axis=0),
                         "ss": (s * s).sum(axis=0)})  # fmt: skip

    def variance(self) -> float:
        """The mean squared error per feature of the mean."""
        sums = self._tally.sums
        return float(np.mean(sums["ss"] - sums["s"] ** 2 / self._n_rows)) / self._n_rows

    def error(self) -> float:
        """The mean squared error per feature of the best a * value + b."""
        sums, n_rows = self._tally.sums, self._n_rows
        squares = sums["vv"] - sums["v"] ** 2 / n_rows
        products = sums["vs"] - sums["v"] * sums["s"] / n_rows
        explained = products**2 / np.where(squares > 0, squares, 1)
        return self.variance() - float(np.mean(explained)) / n_rows


class Baselines:
    """How many features are present, and the error of reading their strengths without an SAE: from the projection on the
    feature's direction, from the best affine map of x, from the mean.
    """

    def __init__(self, truth: Float[np.ndarray, "n_features d_in"]) -> None:
        """`truth`: directions of the features where x is read."""
        self._directions = _unit(truth)
        self._projection = Readout()
        self._n_rows = 0
        self._tally = Tally()

    def add(self, strengths: Float[np.ndarray, "rows n_features"], x: Float[np.ndarray, "rows d_in"]) -> None:
        """Counts some rows."""
        self._n_rows += len(x)
        self._projection.add(x @ self._directions.T, strengths)
        design, s = np.concatenate([x, np.ones((len(x), 1))], axis=1, dtype=np.float64), strengths.astype(np.float64)
        self._tally.add({"gram": design.T @ design, "cross": design.T @ s, "present": (s > 0).sum(), "ss": (s * s).sum()})

    def figures(self) -> dict[str, float]:
        """l0_truth, readout_mse_projection, readout_mse_affine, readout_mse_mean."""
        sums, n_features = self._tally.sums, len(self._directions)
        # The normal equations: the residual of the best affine map is what it does not explain.
        solution, *_ = np.linalg.lstsq(sums["gram"], sums["cross"], rcond=None)
        affine = float(sums["ss"] - (solution * sums["cross"]).sum()) / (self._n_rows * n_features)
        return {
            "l0_truth": float(sums["present"]) / self._n_rows,
            "readout_mse_projection": self._projection.error(),
            "readout_mse_affine": affine,
            "readout_mse_mean": self._projection.variance(),
        }


def _unit(matrix: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    return matrix / np.where(norms > 0, norms, 1)
