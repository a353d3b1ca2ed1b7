"""The correlation of each latent with each neuron: with each number of the rows that the SAE reads."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

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

    def strongest(self, n: int) -> tuple[Int[np.ndarray, "d_sae n"], Float[np.ndarray, "d_sae n"]]:
        """The `n` neurons of each latent with the largest absolute correlation, and the correlations; -1 and 0 for a latent
        that never fired.
        """
        d_sae, d_read = self._products.shape
        n_kept = min(n, d_read)
        neurons, found = np.full((d_sae, n), -1, np.int32), np.zeros((d_sae, n), np.float32)
        for first in range(0, d_sae, LATENTS_AT_ONCE):
            part = slice(first, first + LATENTS_AT_ONCE)
            correlations = self._correlations(part)
            order = np.argsort(-np.abs(correlations), axis=1, kind="stable")[:, :n_kept]
            fires = self.acts[part] > 0
            neurons[part, :n_kept] = np.where(fires[:, None], order, -1)
            found[part, :n_kept] = np.take_along_axis(correlations, order, axis=1)
        return neurons, found

    def _correlations(self, part: slice) -> Float[np.ndarray, "latents d_read"]:
        """Those of some latents; 0 where something never changes."""
        n = max(self._n_rows, 1)
        acts, neurons = self.acts[part].astype(np.float64) / n, self._neurons.astype(np.float64) / n
        covariances = self._products[part] / n - acts[:, None] * neurons
        deviations = np.sqrt(np.maximum(self._act_squares[part] / n - acts**2, 0))[:, None]
        deviations = deviations * np.sqrt(np.maximum(self._neuron_squares / n - neurons**2, 0))
        return np.where(deviations > 0, covariances / np.where(deviations > 0, deviations, 1), 0).astype(np.float32)

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
