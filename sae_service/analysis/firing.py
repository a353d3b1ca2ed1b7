"""Which latents fire on which tokens, on the host: few of them do, so only those are kept."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.sparse import csr_array

from sae_service.sae.inference import InferenceSAE

AT_ONCE = 1 << 24
"""So many activations are dense at once."""


@jax.jit
def _encoded(sae: InferenceSAE, x: Float[Array, "rows d_read"]) -> Float[Array, "rows d_sae"]:
    return sae.encode(x)


def firing(sae: InferenceSAE, x: Float[np.ndarray, "rows d_read"]) -> Any:
    """The activations of the rows as a sparse matrix [rows, d_sae] by rows.

    Args:
        sae: without its sites, so that those of one structure are compiled once.
    """
    d_sae = sae.W_dec.shape[0]
    # A power of two, so that batches of about the same length have one form.
    n_at_once = max(1, min(AT_ONCE // d_sae, 1 << max(len(x) - 1, 0).bit_length()))
    values, latents, counts = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
    for first in range(0, len(x), n_at_once):
        part = x[first : first + n_at_once]
        # The last ones are filled up with rows that nobody looks at.
        padded = np.pad(part, ((0, n_at_once - len(part)), (0, 0)))
        acts = np.asarray(_encoded(sae, padded))[: len(part)]
        where = np.flatnonzero(acts > 0)
        values.append(acts.ravel()[where])
        latents.append((where % d_sae).astype(np.int32))
        counts.append(np.bincount(where // d_sae, minlength=len(part)))
    offsets = np.concatenate([[0], np.cumsum(np.concatenate([*counts, np.zeros(0, np.int64)]))])
    return csr_array((_joined(values, np.float32), _joined(latents, np.int32), offsets), shape=(len(x), d_sae))


def _joined(parts: list[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)


@dataclass(frozen=True)
class Pairs:
    """A latent and a passage in which it fires, and its activations there; any number of such pairs.

    Attributes:
        passages: the numbers of the passages.
        lengths: on how many tokens of its passage each latent fires.
        positions: of those tokens in the passage, all of the first pair first.
        values: the activations there.
    """

    latents: Int[np.ndarray, " pairs"]
    passages: Int[np.ndarray, " pairs"]
    lengths: Int[np.ndarray, " pairs"]
    positions: Int[np.ndarray, " tokens"]
    values: Float[np.ndarray, " tokens"]

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def starts(self) -> Int[np.ndarray, " pairs"]:
        """Where the tokens of each pair begin."""
        return np.cumsum(self.lengths, dtype=np.int64) - self.lengths

    @property
    def peaks(self) -> Float[np.ndarray, " pairs"]:
        """The largest activation of each pair."""
        return np.maximum.reduceat(self.values, self.starts) if len(self) else np.zeros(0, np.float32)

    def take(self, which: Int[np.ndarray, " chosen"]) -> "Pairs":
        """Some of the pairs, in the order of their indices."""
        lengths = self.lengths[which]
        shifts = self.starts[which] - (np.cumsum(lengths, dtype=np.int64) - lengths)
        tokens = np.arange(lengths.sum()) + np.repeat(shifts, lengths)
        return Pairs(self.latents[which], self.passages[which], lengths, self.positions[tokens], self.values[tokens])


def joined(parts: list[Pairs]) -> Pairs:
    """All pairs of some, one after the other."""
    return Pairs(*(np.concatenate([getattr(part, name) for part in parts]) for name in Pairs.__dataclass_fields__))


def no_pairs() -> Pairs:
    """None at all."""
    whole, position, real = np.zeros(0, np.int32), np.zeros(0, np.uint16), np.zeros(0, np.float32)
    return Pairs(whole, whole, whole, position, real)


def pairs_of(acts: Any, passages: Int[np.ndarray, " rows"], positions: Int[np.ndarray, " rows"]) -> Pairs:
    """The pairs of a batch, by latent and then by passage.

    Args:
        acts: sparse activations [rows, d_sae].
        passages: the passage of each row, ascending.
        positions: the place of each row in it.
    """
    by_latent = acts.tocsc()
    counts = np.diff(by_latent.indptr)
    latents = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    here = passages[by_latent.indices]
    is_first = np.ones(len(latents), bool)
    is_first[1:] = (latents[1:] != latents[:-1]) | (here[1:] != here[:-1])
    firsts = np.flatnonzero(is_first)
    lengths = np.diff(np.append(firsts, len(latents))).astype(np.int32)
    return Pairs(
        latents[firsts], here[firsts].astype(np.int32), lengths, positions[by_latent.indices].astype(np.uint16), by_latent.data
    )
