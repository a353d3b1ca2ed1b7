"""Which latents fire together: a sparse count of pairs among the strongest latents of each token, of bounded size.

Of each token only its STRONGEST latents are looked at, and of each latent only PARTNERS others are remembered, those with the
largest counts: whenever enough tokens have come, their pairs are counted and the rest is forgotten. A latent that is there on a
ninth of another's tokens is never forgotten in one such count, since at most 63 others can be there as often.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int
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
        self._n_waiting = 0

    def add(self, acts: Any) -> None:
        """Counts the rows of a sparse matrix [rows, d_sae]."""
        rows = strongest(acts)
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

    def nearest(self, n: int) -> tuple[Int[np.ndarray, "d_sae n"], Int[np.ndarray, "d_sae n"], Float[np.ndarray, "d_sae n"]]:
        """For each latent those that share most of their tokens with it: the latents, -1 where there are no more, the counts,
        and of the tokens on which either is among the strongest the share on which both are.
        """
        table, appearances = self._counted()
        latents = np.repeat(np.arange(self._d_sae), np.diff(table.indptr))
        others, counts = table.indices, table.data
        either = appearances[latents] + appearances[others] - counts
        shares = (counts / np.maximum(either, 1)).astype(np.float32)
        order = np.lexsort((others, -shares, latents))
        latents, others, counts, shares = (values[order] for values in (latents, others, counts, shares))
        ranks = ranks_of(latents)
        chosen = ranks < n
        place = latents[chosen], ranks[chosen]
        shape = self._d_sae, n
        found = np.full(shape, -1, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        for target, values in zip(found, (others, counts, shares), strict=True):
            target[place] = values[chosen]
        return found

    def state(self) -> dict[str, np.ndarray]:
        """All that is remembered."""
        table = {"counts": self._table.data, "others": self._table.indices, "offsets": self._table.indptr}
        waits = {"waiting": self._waiting, "n_waiting": np.asarray(self._n_waiting, np.int32)}
        return {name: values.astype(np.int32) for name, values in (table | waits | {"appearances": self._appearances}).items()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Goes on from a state."""
        parts = state["counts"], state["others"], state["offsets"]
        self._table = csr_array(parts, shape=(self._d_sae, self._d_sae))
        self._appearances, self._waiting, self._n_waiting = state["appearances"], state["waiting"], int(state["n_waiting"])


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
