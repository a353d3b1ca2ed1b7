"""The cached chunks of one hook point: which places of the text they have, and their rows, read one chunk ahead."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from sae_service.activations.chunks import Batch, Chunk, RowFormat
from sae_service.activations.tokens import Cursor
from sae_service.errors import DamagedCheckpoint
from sae_service.storage.cache import ActivationCache


class Place(NamedTuple):
    """Where a batch of prompts begins, in the order of the text."""

    epoch: int
    shard: int
    documents: int
    rows_served: int

    @staticmethod
    def of(cursor: Cursor) -> "Place":
        """The place of a cursor."""
        return Place(cursor.epoch, cursor.shard, cursor.documents, cursor.rows_served)


class ChunkName(NamedTuple):
    """The places of the first and the last batch of a chunk, and the hash of its content."""

    first: Place
    last: Place
    sha256: str

    @staticmethod
    def read(name: str) -> "ChunkName | None":
        """What a name says; None for one that is no chunk's."""
        try:
            first, last, sha256 = name.split("-")
            return ChunkName(Place(*map(int, first.split("."))), Place(*map(int, last.split("."))), sha256)
        except (ValueError, TypeError):
            return None

    @staticmethod
    def start(first: Cursor, last: Cursor) -> str:
        """The name of a chunk without its hash."""
        return "-".join(".".join(map(str, Place.of(cursor))) for cursor in (first, last))

    def __str__(self) -> str:
        return "-".join((*(".".join(map(str, place)) for place in (self.first, self.last)), self.sha256))


class CachedHook:
    """The chunks of one hook point in one form.

    Args:
        folder: where they are in the cache.
        width: of its rows.
        reader: reads ahead.
        say: is told of a chunk that cannot be used.
    """

    def __init__(
        self, cache: ActivationCache, folder: str, width: int, form: RowFormat, reader: ThreadPoolExecutor,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.folder, self._cache, self._width, self._form, self._reader, self._say = folder, cache, width, form, reader, say
        self._names: tuple[ChunkName, ...] = ()
        self._unusable = set[ChunkName]()

    def look(self) -> None:
        """Lists the chunks that there are now. Raises StorageFailure."""
        found = map(ChunkName.read, self._cache.chunks(self.folder))
        self._names = tuple(sorted(name for name in found if name is not None and name not in self._unusable))

    def holding(self, cursor: Cursor) -> ChunkName | None:
        """The chunk with the batch that begins at a cursor; the one that reaches farthest, if there are several."""
        place = Place.of(cursor)
        return max((name for name in self._names if name.first <= place <= name.last), key=lambda name: name.last, default=None)

    def _behind(self, cursor: Cursor) -> ChunkName | None:
        """The chunk that may go on behind the batch that begins at a cursor."""
        place = Place.of(cursor)
        return min((name for name in self._names if name.first > place), key=lambda name: (name.first, *_back(name)), default=None)

    def batches(self, cursor: Cursor) -> Iterator[Batch]:
        """The batches from the one at a cursor on, as far as chunks follow one another. Raises StorageFailure."""
        name, last = self.holding(cursor), None
        coming = None if name is None else self._read_ahead(name)
        while name is not None and coming is not None:
            chunk = self._checked(name, coming)
            if chunk is None:
                return
            if last is not None and chunk.previous != last:
                return
            if last is None and cursor not in chunk.cursors:
                self._leave_out(name, f"{self.folder}/{name} lacks a batch of the text that lies between its ends.")
                return
            first = chunk.cursors.index(cursor) if last is None else 0
            last = chunk.cursors[-1]
            name = self._behind(last)
            coming = None if name is None else self._read_ahead(name)
            yield from chunk.batches(first)

    def _read_ahead(self, name: ChunkName) -> Future[Chunk]:
        return self._reader.submit(lambda: Chunk(self._cache.read(self.folder, str(name)), self._form))

    def _checked(self, name: ChunkName, coming: Future[Chunk]) -> Chunk | None:
        """A chunk with what its name says, or None; then it is left out."""
        try:
            chunk = coming.result()
        except DamagedCheckpoint as error:
            return self._leave_out(name, str(error))
        except (ValueError, KeyError, TypeError):
            return self._leave_out(name, f"{self.folder}/{name} does not hold rows of this kind.")
        if chunk.folder != self.folder:
            return self._leave_out(name, f"{self.folder}/{name} holds the rows of {chunk.folder}.")
        if [Place.of(cursor) for cursor in (*chunk.cursors[:1], *chunk.cursors[-1:])] != [name.first, name.last]:
            return self._leave_out(name, f"{self.folder}/{name} holds the rows of another part of the text.")
        if chunk.width != self._width:
            return self._leave_out(name, f"{self.folder}/{name} has rows of {chunk.width} numbers, and the model of {self._width}.")
        return chunk

    def leave_out(self, cursor: Cursor, why: str) -> None:
        """Uses no chunk any more that has the batch that begins at a cursor, for a reason."""
        while (name := self.holding(cursor)) is not None:
            self._leave_out(name, f"{self.folder}/{name} {why}")

    def _leave_out(self, name: ChunkName, why: str) -> None:
        self._unusable.add(name)
        self._names = tuple(other for other in self._names if other != name)
        self._say(f"A part of the activation cache cannot be used, and the model computes it again: {why}")


def _back(name: ChunkName) -> tuple[int, ...]:
    return tuple(-number for number in name.last)
