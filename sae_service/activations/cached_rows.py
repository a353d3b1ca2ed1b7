"""Rows from the activation cache as far as it goes, and from the model where it ends, in the order of the text.

Reading goes on at every batch that the cache has, wherever it is missing some: which rows come from where changes none of them.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from threading import Lock

from sae_service.activations.buffer import ByHook, Reading
from sae_service.activations.cache_writer import CacheWriter
from sae_service.activations.cached_hook import CachedHook
from sae_service.activations.chunks import RowFormat, Stored
from sae_service.activations.tokens import Cursor
from sae_service.errors import StorageFailure
from sae_service.storage.cache import ActivationCache

LOOK_EVERY_S = 10


def rounded(form: RowFormat, reading: Reading, start: Cursor) -> Iterator[tuple[ByHook, Cursor]]:
    """The model's rows as they would come from a cache of this form."""
    for rows, cursor in reading.read(start):
        yield {name: form.restore(form.store(found), reading.model.device) for name, found in rows.items()}, cursor


class CachedRows:
    """The cached rows of one stream.

    Attributes:
        n_cached, n_computed: how many rows came from the cache, and how many from the model.
    """

    def __init__(
        self, cache: ActivationCache, stream: str, about: dict[str, str], widths: Mapping[str, int], form: RowFormat,
        changed: Callable[[], Path | None], say: Callable[[str], None],
    ) -> None:  # fmt: skip
        """Looks at what there is.

        Args:
            about: the stream's model and dataset.
            widths: those of the rows, by hook point.
            changed: a file that the stream is named after, and that is not what it was.
            say: is told what a user is to be warned of, on any thread.

        Raises:
            StorageFailure: the cache does not answer.
        """
        self.n_cached = self.n_computed = 0
        self._cache, self._form, self._changed, self._say = cache, form, changed, say
        self._mark = partial(cache.mark, stream, about)
        self._reader = ThreadPoolExecutor(max_workers=2, thread_name_prefix="cache reader")
        self._hooks = {
            name: CachedHook(cache, f"{stream}/{name}/{form.stored_as}", width, form, self._reader, say)
            for name, width in widths.items()
        }
        self._closing = ExitStack()
        self._closing.callback(self._reader.shutdown, cancel_futures=True)
        self._is_away = self._is_another = False
        self._is_noted, self._asking = True, Lock()
        for hook in self._hooks.values():
            hook.look()
        self._looked = time.monotonic()

    def read(self, fills: bool, reading: Reading, start: Cursor) -> Iterator[tuple[ByHook, Cursor]]:
        """The rows of each batch from a cursor on, with its own cursor.

        Args:
            fills: whether rows that the model computes are added to the cache.
        """
        writer = CacheWriter(self._cache, self._mark, self._hooks, self.is_the_same, self._say) if fills else None
        if writer is not None:
            self._closing.callback(writer.close)
        device = reading.model.device
        at, is_served = start, False
        while True:
            if not is_served:
                for stored, cursor in self._cached(at):
                    self.n_cached += _length(stored)
                    at, is_served = cursor, True
                    yield self._restored(stored, device), cursor
            for prompts, cursor in reading.prompts(at):
                if is_served and cursor == at:
                    continue
                if self._has(cursor):
                    at, is_served = cursor, False
                    break
                stored = {name: self._form.store(rows) for name, rows in reading.rows(prompts).items()}
                self.n_computed += _length(stored)
                if writer is not None:
                    writer.add(at if is_served else None, cursor, stored)
                at, is_served = cursor, True
                yield self._restored(stored, device), cursor
            else:
                return
            if writer is not None:
                writer.flush()

    def _restored(self, stored: dict[str, Stored], device: str) -> ByHook:
        return {name: self._form.restore(rows, device) for name, rows in stored.items()}

    def _cached(self, cursor: Cursor) -> Iterator[tuple[dict[str, Stored], Cursor]]:
        """The batches from the one at a cursor on that the cache has for all hook points."""
        if self._is_away or self._is_another or any(hook.holding(cursor) is None for hook in self._hooks.values()):
            return
        try:
            for batches in zip(*(hook.batches(cursor) for hook in self._hooks.values()), strict=False):
                if len({(batch.cursor, len(batch.stored.rows)) for batch in batches}) > 1:
                    for hook, batch in zip(self._hooks.values(), batches, strict=True):
                        hook.leave_out(batch.cursor, "has other rows than the chunks of the other hook points.")
                    return
                self._note_use()
                yield {name: batch.stored for name, batch in zip(self._hooks, batches, strict=True)}, batches[0].cursor
        except StorageFailure as error:
            self._leave(error)

    def _note_use(self) -> None:
        """Notes that the stream is in use. If that fails, it is said once and not tried again: rows can be read all the same."""
        try:
            if self._is_noted:
                self._mark()
        except StorageFailure as error:
            self._is_noted = False
            self._say(f"The activation cache does not note that its rows are in use, so they may be deleted early: {error}")

    def _has(self, cursor: Cursor) -> bool:
        """Whether the cache has a batch, as far as is known: looked up every few seconds."""
        try:
            if not self._is_away and time.monotonic() - self._looked > LOOK_EVERY_S and self.is_the_same():
                for hook in self._hooks.values():
                    hook.look()
                self._looked = time.monotonic()
        except StorageFailure as error:
            self._leave(error)
        return not (self._is_away or self._is_another) and all(hook.holding(cursor) is not None for hook in self._hooks.values())

    def is_the_same(self) -> bool:
        """Whether the files are those that the stream is named after. If not, that is said, and no more is read or added."""
        with self._asking:
            if not self._is_another and (changed := self._changed()) is not None:
                self._is_another = True
                self._say(f"{changed} has changed since the job began, so the job no longer uses the activation cache.")
            return not self._is_another

    def _leave(self, error: StorageFailure) -> None:
        self._is_away = True
        self._say(f"The activation cache cannot be read, and the model computes the rows: {error}")

    def close(self) -> None:
        """Writes what is left to be added, and stops reading ahead. Nothing is read afterwards."""
        self._closing.close()


def _length(stored: dict[str, Stored]) -> int:
    return len(next(iter(stored.values())).rows)
