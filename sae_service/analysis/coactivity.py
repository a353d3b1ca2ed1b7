"""Which latents fire together: a sparse count of pairs among the strongest latents of each token, of bounded size.

Of each token only its STRONGEST latents are looked at, and of each latent only PARTNERS others are remembered, those with the
largest counts: whenever enough tokens have come, their pairs are counted and the rest is forgotten. A latent that is there on a
ninth of another's tokens is never forgotten in one such count, since at most 63 others can be there as often.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int
from scipy.sparse import csr_array

from sae_service.analysis.kept import ranks_of

STRONGEST, PARTNERS, TOKENS_AT_ONCE = 8, 64, 1 << 16


class Coactivity:
    """Counts of tokens on which two latents are both among the strongest."""

    def __init__(self, d_sae: int) -> None:
        self._d_sae = d_sae
        self._table: Any = csr_array((d_sae, d_sae), dtype=np.int32)
        self._appearances = np.zeros(d_sae, np.int32)
        self._waiting = np.full((TOKENS_AT_ONCE, STRONGEST), -1, np.int32)
        self._n_waiting = self._n_tokens = 0

    def add(self, acts: Any) -> None:
        """Counts the rows of a sparse matrix [rows, d_sae]."""
        rows = strongest(acts)
        self._n_tokens += len(rows)
        while len(rows):
            part = rows[: TOKENS_AT_ONCE - self._n_waiting]
            self._waiting[self._n_waiting : self._n_waiting + len(part)] = part
            self._n_waiting += len(part)
            rows = rows[len(part) :]
            if self._n_waiting == TOKENS_AT_ONCE:
                self._table, self._appearances = self._counted()
                self._waiting[:], self._n_waiting = -1, 0

    def _counted(self) -> tuple[Any, Int[np.ndarray, " d_sae"]]:
        """The counts of pairs, with those of what waits, and on how many tokens each latent was among the strongest."""
        taken = self._waiting[: self._n_waiting]
        is_one = taken >= 0
        offsets = np.concatenate([[0], np.cumsum(is_one.sum(axis=1))])
        fired = csr_array((np.ones(offsets[-1], np.int32), taken[is_one], offsets), shape=(len(taken), self._d_sae))
        pairs = (fired.T @ fired).tocoo()
        is_other = pairs.row != pairs.col
        others = csr_array((pairs.data[is_other], (pairs.row[is_other], pairs.col[is_other])), shape=pairs.shape)
        appearances = self._appearances + np.bincount(taken[is_one], minlength=self._d_sae).astype(np.int32)
        return _pruned(self._table + others), appearances

    def nearest(self, n: int) -> dict[str, np.ndarray]:
        """For each latent the `n` that most often are among the strongest where it is, beyond chance:

        coactive_latents: -1 where there are no more. coactive_counts: tokens on which both are among the strongest.
        coactive_correlations: Pearson's, of being among them. coactive_cosines: the count over the geometric mean of both.
        """
        table, appearances = self._counted()
        latents = np.repeat(np.arange(self._d_sae), np.diff(table.indptr))
        others, counts = table.indices, table.data
        own, other = (appearances[index].astype(np.float64) for index in (latents, others))
        cosines = counts / np.sqrt(own * other)
        spread = np.sqrt(own * (self._n_tokens - own) * other * (self._n_tokens - other))
        correlations = np.where(spread > 0, (self._n_tokens * counts - own * other) / np.where(spread > 0, spread, 1), 0)
        order = np.lexsort((others, -correlations, latents))
        ranks = ranks_of(latents)
        chosen = ranks < n
        place, order = (latents[chosen], ranks[chosen]), order[chosen]
        kinds = {"latents": (others, np.int32), "counts": (counts, np.int32)}
        kinds |= {"correlations": (correlations, np.float32), "cosines": (cosines, np.float32)}
        found: dict[str, np.ndarray] = {}
        for name, (values, dtype) in kinds.items():
            found[f"coactive_{name}"] = np.full((self._d_sae, n), -1 if name == "latents" else 0, dtype)
            found[f"coactive_{name}"][place] = values[order]
        return found

    def state(self) -> dict[str, np.ndarray]:
        """All that is remembered."""
        table = {"counts": self._table.data, "others": self._table.indices, "offsets": self._table.indptr}
        waits = {"waiting": self._waiting, "seen": np.asarray([self._n_waiting, self._n_tokens])}
        return {name: values.astype(np.int32) for name, values in (table | waits | {"appearances": self._appearances}).items()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Goes on from a state."""
        parts = state["counts"], state["others"], state["offsets"]
        self._table = csr_array(parts, shape=(self._d_sae, self._d_sae))
        self._appearances, self._waiting = state["appearances"], state["waiting"]
        self._n_waiting, self._n_tokens = map(int, state["seen"])


def strongest(acts: Any) -> Int[np.ndarray, "rows strongest"]:
    """The STRONGEST latents of each row, the strongest first, -1 where fewer fire; of equal ones the first."""
    rows = np.repeat(np.arange(acts.shape[0]), np.diff(acts.indptr))
    order = np.lexsort((acts.indices, -acts.data, rows))
    ranks = ranks_of(rows)
    chosen = ranks < STRONGEST
    found = np.full((acts.shape[0], STRONGEST), -1, np.int32)
    found[rows[chosen], ranks[chosen]] = acts.indices[order][chosen]
    return found


def _pruned(table: Any) -> Any:
    """The table with the PARTNERS largest counts of each latent; of equal ones, those of the first others."""
    table = table.tocsr()
    table.sort_indices()
    latents = np.repeat(np.arange(table.shape[0]), np.diff(table.indptr))
    full = np.diff(table.indptr)[latents] > PARTNERS
    if not full.any():
        return table
    order = np.lexsort((table.indices[full], -table.data[full], latents[full]))
    chosen = np.ones(len(latents), bool)
    chosen[np.flatnonzero(full)[order[ranks_of(latents[full]) >= PARTNERS]]] = False
    offsets = np.concatenate([[0], np.cumsum(np.bincount(latents[chosen], minlength=table.shape[0]))])
    return csr_array((table.data[chosen], table.indices[chosen], offsets), shape=table.shape)
