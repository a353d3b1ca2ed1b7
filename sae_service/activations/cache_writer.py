"""Adds rows to the activation cache while a job trains on them: collected into chunks, which a thread writes."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from sae_service.activations.cached_hook import CachedHook, ChunkName
from sae_service.activations.chunks import Batch, Stored, packed
from sae_service.activations.tokens import Cursor
from sae_service.errors import SAEServiceError, StorageFailure, translated
from sae_service.storage.cache import ActivationCache

CHUNK_BYTES, LEAST_BYTES = 64 << 20, 8 << 20
"""What the chunks of all hook points that are collected at once take, and the least that one is to have."""


@dataclass
class _Pending:
    """Batches that follow one another and have not been written yet."""

    previous: Cursor | None = None
    batches: list[Batch] = field(default_factory=list)
    n_bytes: int = 0


class CacheWriter:
    """Collects the rows of a stream's hook points. When the storage fails or has no room, it says so once and stops."""

    def __init__(
        self, cache: ActivationCache, mark: Callable[[], None], hooks: Mapping[str, CachedHook], is_the_same: Callable[[], bool],
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        """Begins with nothing.

        Args:
            mark: notes that the stream is in use. May raise StorageFailure.
            is_the_same: whether what decides the rows is what it was; asked before each chunk.
            say: is told once why no more is written.
        """
        self._cache, self._mark, self._hooks, self._is_the_same, self._say = cache, mark, hooks, is_the_same, say
        self._chunk_bytes = max(LEAST_BYTES, CHUNK_BYTES // len(hooks))
        self._pending = {name: _Pending() for name in hooks}
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cache writer")
        self._writing: Future[None] | None = None
        self._is_over = False

    def add(self, previous: Cursor | None, cursor: Cursor, rows: Mapping[str, Stored]) -> None:
        """Adds one batch.

        Args:
            previous: where the batch before it begins, if that is known.
        """
        for name, stored in rows.items() if not self._is_over else ():
            pending = self._pending[name]
            if self._hooks[name].holding(cursor) is not None:
                self._write(name)
                continue
            if not pending.batches:
                pending.previous = previous
            pending.batches.append(Batch(cursor, stored.on_host()))
            pending.n_bytes += stored.n_bytes
            if pending.n_bytes >= self._chunk_bytes:
                self._write(name)

    def flush(self) -> None:
        """Writes what has been collected: another batch than the next one follows, or none."""
        for name in self._hooks:
            self._write(name)

    def close(self) -> None:
        """Writes what has been collected, and waits for it. Raises nothing, as what cannot be written has been said."""
        self.flush()
        self._writer.shutdown()

    def _write(self, name: str) -> None:
        pending, self._pending[name] = self._pending[name], _Pending()
        if pending.batches and not self._is_over:
            # One is collected while another is written, and no more are kept.
            if self._writing is not None:
                self._writing.result()
            self._writing = self._writer.submit(self._put, self._hooks[name], pending)

    def _put(self, hook: CachedHook, pending: _Pending) -> None:
        first, last = pending.batches[0].cursor, pending.batches[-1].cursor
        try:
            # Whatever is wrong with it, a job can do without.
            with translated(lambda error: StorageFailure(f"{type(error).__name__}: {error}")):
                self._is_over |= not self._is_the_same()
                if self._is_over:
                    return
                hook.look()
                # Another job may have been faster.
                if (there := hook.holding(first)) is None or there != hook.holding(last):
                    self._mark()
                    content = packed(hook.folder, pending.previous, pending.batches)
                    self._cache.put(hook.folder, ChunkName.start(first, last), content)
        except (SAEServiceError, MemoryError) as error:
            self._is_over = True
            self._say(f"The job no longer adds to the activation cache: {str(error) or type(error).__name__}")
