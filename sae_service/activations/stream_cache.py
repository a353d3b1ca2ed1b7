"""What a job's stream has to do with the activation cache: where it is in it, what is read and added, and what is said of it."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from sae_service import hosts
from sae_service.activations import noted_files, text
from sae_service.activations.buffer import ByHook, Reading
from sae_service.activations.cache_key import identity, key
from sae_service.activations.cached_rows import CachedRows, rounded
from sae_service.activations.chunks import RowFormat
from sae_service.activations.model import LanguageModel
from sae_service.activations.noted_files import NotedFiles
from sae_service.activations.tokens import Cursor
from sae_service.errors import StorageFailure
from sae_service.spec import StreamSpec
from sae_service.storage.cache import ActivationCache


class StreamCache:
    """The cached rows of a stream, if there can be any; without them its rows are the same, and the model computes them all.

    Attributes:
        news: what a user is to be told, as levels and sentences; whoever tells it empties it.
    """

    def __init__(
        self, stream: StreamSpec, widths: Mapping[str, int], model: LanguageModel, model_files: NotedFiles | None,
        cache: ActivationCache | None, ends_here: Callable[[], bool],
    ) -> None:  # fmt: skip
        """Finds the stream, by a hash of all that decides its rows.

        Args:
            widths: those of the rows, by hook point.
            model_files: those that the model was loaded from, noted before; None if they are a hub's.
            cache: None if there is none here.
            ends_here: asked with every piece of the files whether to stop.

        Raises:
            Stopped: it should stop.
            DataNotFound, InvalidSpec: of text that cannot or must not be read.
        """
        own = stream.text_source[0].dtype
        self._stream, self._form = stream, RowFormat(stream.cache_dtype or own, own)
        self.news: list[tuple[str, str]] = []
        self._rows: CachedRows | None = None
        self._files: tuple[NotedFiles, ...] = ()
        if stream.rounded_to is not None:
            self.news.append(("info", f"stream.cache_dtype: all rows are rounded to {stream.rounded_to}, so they are not exact."))
        if cache is None:
            self.warn("stream.cache: this service has no activation cache, and the model computes all rows.")
            return
        name = self._name(cache.project, model, model_files, ends_here)
        if name is None:
            return
        about = {"model": stream.text_source[0].name, "dataset": stream.text_source[1].path}
        try:
            self._rows = CachedRows(cache, name, about, widths, self._form, self._changed, self.warn)
        except StorageFailure as error:
            self.warn(f"The activation cache cannot be read, and the model computes all rows: {error}")

    def _name(
        self, project: str | None, model: LanguageModel, model_files: NotedFiles | None, ends_here: Callable[[], bool]
    ) -> str | None:
        """The name of the stream, or None if it cannot have one, which is said."""
        dataset = self._stream.text_source[1]
        # What a job may not read is refused, as it is by reading.
        text.open_text(dataset, dataset.split, model.roots)
        text_files = noted_files.of_text(dataset, model.roots)
        self._files = tuple(files for files in (model_files, text_files) if files is not None)
        by = model.computed_by()
        try:
            found = identity(self._stream, project, by, model_files, text_files, model.roots, ends_here)
        except OSError as error:
            self.warn(f"stream.cache: a file of the model or dataset cannot be read, so the cache is not used: {error}")
            return None
        if found is None:
            self.warn("stream.cache: it is not known which commit of the model or dataset this is, so the cache is not used.")
        elif (changed := self._changed()) is not None:
            self.warn(f"stream.cache: {changed} has changed since the job began, so the cache is not used.")
        else:
            return key(found)
        return None

    def _changed(self) -> Path | None:
        """A file of the model or of the text that is not what it was before it was read."""
        return next((changed for files in self._files if (changed := files.changed()) is not None), None)

    def warn(self, said: str) -> None:
        """Adds a warning to the news."""
        self.news.append(("warning", said))

    def read(self, is_look: bool, reading: Reading, start: Cursor) -> Iterator[tuple[ByHook, Cursor]]:
        """The rows of each batch from a cursor on, with its own cursor.

        Args:
            is_look: they are read once more to be trained on, so none are added to the cache yet.
        """
        if self._rows is not None:
            return self._rows.read(hosts.leads() and self._stream.cache == "fill" and not is_look, reading, start)
        return Reading.read(reading, start) if self._stream.rounded_to is None else rounded(self._form, reading, start)

    def close(self) -> None:
        """Adds the last rows to the cache, and the share of those that came from it to the news. Nothing is read afterwards."""
        if self._rows is not None:
            rows, self._rows = self._rows, None
            rows.close()
            n_rows = rows.n_cached + rows.n_computed
            share = rows.n_cached / max(n_rows, 1)
            self.news.append(("info", f"{share:.1%} of the {n_rows} rows that were read came from the activation cache."))

    def tell(self, event: Callable[[str, str], None]) -> None:
        """Tells the news."""
        while self.news:
            event(*self.news.pop(0))
