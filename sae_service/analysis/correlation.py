"""The correlation of each latent with each neuron: with each number of the rows that the SAE reads."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

LATENTS_AT_ONCE = 1 << 12


class Correlation:
    """Sums for Pearson's correlation over the tokens that count.

    Neurons are counted from a fixed centre, the mean of the first batch: so the sums, which are float32, lose little where a mean
    is large beside a deviation.
    """

    def __init__(self, d_sae: int, d_read: int) -> None:
        self._centre = np.zeros(d_read, np.float32)
        self._neurons, self._neuron_squares = np.zeros(d_read, np.float32), np.zeros(d_read, np.float32)
        self.acts, self._act_squares = np.zeros(d_sae, np.float32), np.zeros(d_sae, np.float32)
        self._products = np.zeros((d_sae, d_read), np.float32)
        self._n_rows = 0

    def add(self, acts: Any, x: Float[np.ndarray, "rows d_read"]) -> None:
        """Counts rows: their sparse activations [rows, d_sae] and what was read."""
        if not len(x):
            return
        if self._n_rows == 0:
            self._centre = x.mean(axis=0, dtype=np.float64).astype(np.float32)
        centred = x - self._centre
        self._n_rows += len(x)
        self._neurons += centred.sum(axis=0, dtype=np.float64).astype(np.float32)
        self._neuron_squares += np.square(centred).sum(axis=0, dtype=np.float64).astype(np.float32)
        self.acts += _by_latent(acts, acts.data)
        self._act_squares += _by_latent(acts, np.square(acts.data, dtype=np.float64))
        self._products += acts.T @ centred

    def strongest(self, n: int) -> dict[str, np.ndarray]:
        """The `n` neurons of each latent with the largest absolute correlation; -1 for a latent that never fired:

        neurons: which. neuron_correlations: Pearson's. neuron_cosines: of the activations with what is read.
        """
        d_sae, d_read = self._products.shape
        n_kept = min(n, d_read)
        neurons = np.full((d_sae, n), -1, np.int32)
        found = np.zeros((d_sae, n), np.float32), np.zeros((d_sae, n), np.float32)
        for first in range(0, d_sae, LATENTS_AT_ONCE):
            part = slice(first, first + LATENTS_AT_ONCE)
            correlations, cosines = self._correlations(part)
            order = np.argsort(-np.abs(correlations), axis=1, kind="stable")[:, :n_kept]
            neurons[part, :n_kept] = np.where(self.acts[part, None] > 0, order, -1)
            for target, values in zip(found, (correlations, cosines), strict=True):
                target[part, :n_kept] = np.take_along_axis(values, order, axis=1)
        return {"neurons": neurons, "neuron_correlations": found[0], "neuron_cosines": found[1]}

    def _correlations(self, part: slice) -> tuple[Float[np.ndarray, "latents d_read"], Float[np.ndarray, "latents d_read"]]:
        """Correlations and cosines of some latents; 0 where something never changes."""
        n, centre = max(self._n_rows, 1), self._centre.astype(np.float64)
        acts, neurons = self.acts[part].astype(np.float64) / n, self._neurons.astype(np.float64) / n
        products, act_squares, neuron_squares = self._products[part] / n, self._act_squares[part] / n, self._neuron_squares / n
        covariances = products - acts[:, None] * neurons
        variances = np.maximum(act_squares - acts**2, 0)[:, None] * np.maximum(neuron_squares - neurons**2, 0)
        raw_products = products + acts[:, None] * centre
        raw_squares = act_squares[:, None] * (neuron_squares + 2 * centre * neurons + centre**2)
        return _ratios(covariances, variances), _ratios(raw_products, raw_squares)

    def state(self) -> dict[str, np.ndarray]:
        """All that is remembered."""
        return {
            "centre": self._centre, "neurons": self._neurons, "neuron_squares": self._neuron_squares, "acts": self.acts,
            "act_squares": self._act_squares, "products": self._products, "n_rows": np.asarray(self._n_rows, np.int32),
        }  # fmt: skip

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Goes on from a state."""
        self._centre, self._neurons, self._neuron_squares = state["centre"], state["neurons"], state["neuron_squares"]
        self.acts, self._act_squares, self._products = state["acts"], state["act_squares"], state["products"]
        self._n_rows = int(state["n_rows"])


def _by_latent(acts: Any, values: np.ndarray) -> Float[np.ndarray, " d_sae"]:
    """The sum of `values`, one for each activation, of each latent."""
    return np.bincount(acts.indices, weights=values, minlength=acts.shape[1]).astype(np.float32)


def _ratios(products: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Products over roots of products of squares; 0 where these are 0."""
    return np.where(squares > 0, products / np.sqrt(np.where(squares > 0, squares, 1)), 0).astype(np.float32)
