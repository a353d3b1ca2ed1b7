"""What the directions of latents say without any text: the tokens that they raise and lower, and the directions near to them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sae_service.activations.unembedding import Unembedding
from sae_service.numerics import exact

N_LOGIT_BINS = 50
SCORES_AT_ONCE = 1 << 23
"""So many scores of directions beside tokens, or beside other directions, are there at once."""
ROWS_AT_ONCE = 1 << 12
Alive = Callable[[], None]
Matrix = Float[np.ndarray, "rows columns"]


@dataclass(frozen=True)
class Lens:
    """The logit lens: reads directions of the residual stream as logits, through the final norm without its scale.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens". The mean over all tokens is subtracted: it changes no
    probability.
    """

    gain: Float[np.ndarray, " d_model"]
    is_centred: bool
    tokens: Float[np.ndarray, "d_model n_vocab"]

    def logits(self, directions: Float[np.ndarray, "n d_model"]) -> Float[Array, "n n_vocab"]:
        """What a unit of each direction adds to the logits."""
        centred = directions - directions.mean(axis=1, keepdims=True) if self.is_centred else directions
        return _product((centred * self.gain).astype(np.float32), self.tokens)


_product = jax.jit(exact)


def lens_of(found: Unembedding) -> Lens:
    """The lens of a model."""
    return Lens(found.gain, found.is_centred, found.W_U - found.W_U.mean(axis=1, keepdims=True))


def read_by(lens: Lens, directions: Float[np.ndarray, "d_sae d_model"], n: int, alive: Alive) -> dict[str, np.ndarray]:
    """The `n` tokens that each direction raises most and lowers most, with their logits, and a histogram of all logits:
    N_LOGIT_BINS counts of equal width between the two numbers of `logit_range`.
    """
    n = min(n, lens.tokens.shape[1])
    parts = list[dict[str, np.ndarray]]()
    for rows in _parts(directions, lens.tokens.shape[1]):
        alive()
        logits = lens.logits(rows)
        raised, lowered = _extremes(logits, n)
        counts, ends = _histograms(np.asarray(logits))
        parts.append({
            "raised_logits": raised[0], "raised_tokens": raised[1], "lowered_logits": -lowered[0], "lowered_tokens": lowered[1],
            "logit_histogram": counts, "logit_range": ends,
        })  # fmt: skip
    return {name: np.concatenate([np.asarray(part[name]) for part in parts])[: len(directions)] for name in parts[0]}


@partial(jax.jit, static_argnums=1)
def _extremes(scores: Float[Array, "rows columns"], n: int) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    return _largest(scores, n), _largest(-scores, n)


def _largest(scores: Float[Array, "rows columns"], n: int) -> tuple[Array, Array]:
    values, places = jax.lax.top_k(scores, n)
    return values, places


def _histograms(logits: Matrix) -> tuple[Int[np.ndarray, "rows bins"], Float[np.ndarray, "rows ends"]]:
    lowest, highest = logits.min(axis=1, keepdims=True), logits.max(axis=1, keepdims=True)
    width = np.where(highest > lowest, highest - lowest, 1)
    bins = np.minimum(((logits - lowest) / width * N_LOGIT_BINS).astype(np.int64), N_LOGIT_BINS - 1)
    flat = bins + np.arange(len(logits))[:, None] * N_LOGIT_BINS
    counts = np.bincount(flat.ravel(), minlength=len(logits) * N_LOGIT_BINS).reshape(len(logits), N_LOGIT_BINS)
    return counts.astype(np.int32), np.concatenate([lowest, highest], axis=1)


def nearest(
    directions: Matrix, others: Matrix, n: int, alive: Alive, is_same: bool = False
) -> tuple[Int[np.ndarray, "rows n"], Float[np.ndarray, "rows n"]]:
    """For each direction the `n` others of the largest cosine, -1 where there are fewer, and the cosines.

    Args:
        is_same: the others are the directions themselves; none is its own neighbour.
    """
    n_found = min(n, len(others) - is_same)
    found = np.full((len(directions), n), -1, np.int32), np.zeros((len(directions), n), np.float32)
    columns, first = _units(others).T, 0
    for rows in _parts(_units(directions), len(others)):
        alive()
        values, places = (np.asarray(part) for part in _cosines(rows, columns, first if is_same else -1, n_found))
        taken = min(len(rows), len(directions) - first)
        found[0][first : first + taken, :n_found], found[1][first : first + taken, :n_found] = places[:taken], values[:taken]
        first += taken
    return found


@partial(jax.jit, static_argnums=3)
def _cosines(rows: Array, columns: Array, first: Array | int, n: int) -> tuple[Array, Array]:
    """The largest cosines, without those of a row with its own column, which are counted from `first` on unless that is -1."""
    cosines = exact(rows, columns)
    own = jnp.arange(len(rows)) + first
    is_own = (jnp.arange(columns.shape[1]) == own[:, None]) & (jnp.asarray(first) >= 0)
    return _largest(jnp.where(is_own, -jnp.inf, cosines), n)


def _units(rows: Matrix) -> Matrix:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(norms > 0, norms, 1)).astype(np.float32)


def _parts(rows: Matrix, n_columns: int) -> list[Matrix]:
    """The rows in parts of one shape, the last one filled up with zeros."""
    size = min(len(rows), max(1, SCORES_AT_ONCE // n_columns))
    padded = np.pad(rows, ((0, -len(rows) % size), (0, 0)))
    return list(padded.reshape(-1, size, rows.shape[1]))


def aligned(directions: Matrix, n: int) -> dict[str, np.ndarray]:
    """The `n` neurons, dimensions of what is written, of the largest weights in each direction: which, the weights, and their
    shares of the sum of all absolute weights.
    """
    parts = list[tuple[np.ndarray, ...]]()
    for first in range(0, len(directions), ROWS_AT_ONCE):
        rows = directions[first : first + ROWS_AT_ONCE]
        neurons = np.argsort(-np.abs(rows), axis=1, kind="stable")[:, :n].astype(np.int32)
        weights = np.take_along_axis(rows, neurons, axis=1).astype(np.float32)
        total = np.abs(rows).sum(axis=1, keepdims=True)
        parts.append((neurons, weights, (np.abs(weights) / np.where(total > 0, total, 1)).astype(np.float32)))
    names = ("aligned_neurons", "aligned_weights", "aligned_shares")
    return {name: np.concatenate(found) for name, found in zip(names, zip(*parts, strict=True), strict=True)}


def best_tokens(
    directions: Float[np.ndarray, "d_sae d_model"], W_E: Float[np.ndarray, "n_vocab d_model"], n: int, alive: Alive
) -> dict[str, np.ndarray]:
    """The `n` tokens whose embeddings have the largest products with each direction, beside the mean over all tokens."""
    embeddings = (W_E - W_E.mean(axis=0)).T
    parts = list[tuple[np.ndarray, np.ndarray]]()
    for rows in _parts(directions, embeddings.shape[1]):
        alive()
        (values, places), _ = _extremes(_product(rows, embeddings), min(n, embeddings.shape[1]))
        parts.append((np.asarray(values), np.asarray(places)))
    values, places = (np.concatenate(part)[: len(directions)] for part in zip(*parts, strict=True))
    return {"read_tokens": places, "read_scores": values}
