"""Fill, shuffle, drain: rows of activations in an order that depends on three small values alone.

The buffer fills completely, is permuted with a key derived from (seed, index of the fill) and drains completely.
Its content is a function of where the fill started to read, so a position is all that a checkpoint needs.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jaxtyping import Array, Int, UInt

from sae_service.activations.model import LanguageModel, keep_mask
from sae_service.activations.norms import norms
from sae_service.activations.tokens import Cursor, PackedTokens, Prompts, all_left_out
from sae_service.activations.torch_to_jax import to_jax
from sae_service.errors import Stopped
from sae_service.schema import Frozen

EMPTY_BATCHES = 1000
"""After so many batches of prompts in a row without a kept position there will be none."""
ByHook = dict[str, torch.Tensor]
"""Rows [rows, d_in] by hook point."""
Number = UInt[Array, ""]


class FillStart(Frozen):
    """Where a fill begins: the cursor of a batch of prompts and how many of its kept rows earlier fills took."""

    cursor: Cursor = Cursor()
    rows_taken: int = 0


@dataclass(frozen=True)
class Reading:
    """A model that reads tokens: the activations of the positions that are kept."""

    model: LanguageModel
    tokens: PackedTokens
    hook_names: tuple[str, ...]
    excluded: tuple[int, ...]

    def prompts(self, cursor: Cursor) -> Iterator[tuple[Prompts, Cursor]]:
        """The batches of prompts from a cursor on that have a kept position; `trained` is which ones are kept.

        Raises:
            InvalidSpec: many batches in a row have none.
        """
        n_empty = 0
        for prompts, at in self.tokens.read(cursor):
            keep = keep_mask(prompts.tokens, self.excluded) & prompts.trained
            n_empty = 0 if keep.any() else n_empty + 1
            if n_empty == EMPTY_BATCHES:
                said = f"{EMPTY_BATCHES} batches of text in a row have no token beside those left out."
                raise all_left_out(said, self.tokens.spec)
            if not n_empty:
                yield Prompts(prompts.tokens, keep), at

    def rows(self, prompts: Prompts) -> ByHook:
        """The kept rows of a batch, by hook point."""
        found = self.model.activations(prompts.tokens, self.hook_names)
        kept = torch.from_numpy(prompts.trained).to(self.model.device)
        return {name: rows[kept] for name, rows in found.items()}

    def read(self, cursor: Cursor) -> Iterator[tuple[ByHook, Cursor]]:
        """The rows of each batch from a cursor on, with its own cursor."""
        for prompts, at in self.prompts(cursor):
            yield self.rows(prompts), at


class TextHarvest:
    """Collects the activations of the positions that are kept, fill after fill."""

    def __init__(
        self, model: LanguageModel, tokens: PackedTokens, hook_names: tuple[str, ...], excluded: tuple[int, ...],
        start: FillStart, limits: Mapping[str, float] | None = None,
        read: Callable[[Reading, Cursor], Iterator[tuple[ByHook, Cursor]]] = Reading.read,
    ) -> None:  # fmt: skip
        """Starts reading.

        Args:
            limits: the largest norm that a row may have, by hook point; a longer one is left out at all of them.
            read: the rows from a cursor on, each batch with its own cursor; by default all of them are the model's.
        """
        self._limits = limits or {}
        self._start = start
        self._pending: ByHook = {}
        self._batches = read(Reading(model, tokens, hook_names, excluded), start.cursor)

    def _within_limits(self, rows: ByHook) -> ByHook:
        """The rows that are short enough at every hook point."""
        if not self._limits:
            return rows
        fits = torch.stack([norms(rows[name]) <= limit for name, limit in self._limits.items()]).all(dim=0)
        return {name: found[fits] for name, found in rows.items()}

    def fill(self, n_rows: int, should_stop: Callable[[], bool] = lambda: False) -> tuple[dict[str, jax.Array], FillStart]:
        """The next `n_rows` rows of every hook point, in reading order, and where the following fill starts.

        Raises:
            Stopped: it should stop before a forward pass.
            InvalidSpec: in many batches of prompts no position was kept.
        """
        filled: dict[str, torch.Tensor] = {}
        done = 0
        while done < n_rows:
            if not self._pending or not len(next(iter(self._pending.values()))):
                if should_stop():
                    raise Stopped
                self._advance()
            take = min(n_rows - done, len(next(iter(self._pending.values()))))
            for name, rows in self._pending.items():
                if name not in filled:
                    filled[name] = rows.new_empty((n_rows, rows.shape[1]))
                filled[name][done : done + take] = rows[:take]
            self._pending = {name: rows[take:] for name, rows in self._pending.items()}
            self._start = self._start.model_copy(update={"rows_taken": self._start.rows_taken + take})
            done += take
        return {name: to_jax(rows) for name, rows in filled.items()}, self._start

    def _advance(self) -> None:
        is_first = not self._pending
        found, cursor = next(self._batches)
        skip = self._start.rows_taken if is_first else 0
        self._pending = {name: rows[skip:] for name, rows in self._within_limits(found).items()}
        self._start = FillStart(cursor=cursor, rows_taken=skip)


def permutation(seed: int, fill_index: int, n_rows: int) -> Int[Array, " n_rows"]:
    """The order in which the rows of one fill are served; all hook points share it."""
    return _permutation(jnp.uint32(seed), jnp.uint32(fill_index), n_rows)


@partial(jax.jit, static_argnums=2)
def _permutation(seed: Number, fill_index: Number, n_rows: int) -> Int[Array, " n_rows"]:
    key: Any = jax.random.fold_in(jax.random.key(seed), fill_index)
    return jax.random.permutation(key, n_rows)
