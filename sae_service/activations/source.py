"""Where a job's rows come from: a language model reading text, or a synthetic generator."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array

from sae_service import tracing
from sae_service.activations import noted_files
from sae_service.activations.buffer import FillStart, Reading, TextHarvest
from sae_service.activations.documents import Documents
from sae_service.activations.model import LanguageModel
from sae_service.activations.model_check import Place, check
from sae_service.activations.noted_files import NotedFiles
from sae_service.activations.stream_cache import StreamCache
from sae_service.activations.synthetic import SyntheticHarvest
from sae_service.activations.tokens import PackedTokens
from sae_service.readable import EVERYWHERE, Roots
from sae_service.spec import JobSpec
from sae_service.storage.cache import ActivationCache

MEDIAN_ROWS = 1 << 13
"""So many of the first rows tell the median norm."""
SYNTHETIC_TOLERANCE = 1e-4


@runtime_checkable
class Harvest(Protocol):
    """Fills of rows, one after the other."""

    def fill(self, n_rows: int, should_stop: Callable[[], bool] = ...) -> tuple[dict[str, Array], FillStart]:
        """The next rows of every hook point, in reading order, and where the following fill starts. May raise Stopped."""
        ...


class Source:
    """The rows of a job.

    Attributes:
        model: None for synthetic rows.
        widths: those of the rows by hook point.
        model_warnings: what a user may want to know of the model's hook points.
        cached: what the stream has of the activation cache, once that was opened.
    """

    model: LanguageModel | None
    widths: dict[str, int]
    model_warnings: list[str]
    cached: StreamCache | None

    @tracing.traced("load")
    def __init__(self, job: JobSpec, device: str, roots: Roots = EVERYWHERE) -> None:
        """Loads the model, if there is one, and checks that it has what the job asks for.

        Args:
            roots: where its files and those of the text may be.

        Raises:
            ModelNotFound, InvalidSpec, OutOfMemory: see `LanguageModel` and `model_check`.
        """
        self._stream, self._hook_names, self.roots = job.stream, job.hook_names, roots
        self._documents: Documents | None = None
        self._model_files: NotedFiles | None = None
        self.cached = None
        if job.stream.synthetic is not None:
            self.model, self.model_warnings = None, []
            self.widths = dict.fromkeys(job.hook_names, job.stream.synthetic.d_in)
        else:
            # Before it is loaded: what is cached under the name of its files must come from these.
            if job.stream.cache != "off":
                self._model_files = noted_files.of_model(job.stream.text_source[0], roots)
            self.model = LanguageModel(job.stream.text_source[0], device, roots)
            places = [Place(sae.reads, sae.writes, f"/saes/{index}") for index, sae in enumerate(job.saes)]
            found = check(self.model, job.stream.context_size, places)
            self.widths, self.model_warnings = found.widths, found.warnings

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of every hook point."""
        spec = self._stream.model
        return sum(self.widths.values()) * (4 if spec is None or spec.dtype == "float32" else 2)

    @property
    def model_memory(self) -> dict[str, int]:
        """Bytes that the language model needs, by purpose; nothing if there is none."""
        if self.model is None:
            return {}
        n_tokens = self._stream.prompts * self._stream.context_size
        return {"model": self.model.n_bytes, "logits": self.model.logits_bytes(n_tokens)}

    @property
    def tolerance(self) -> float:
        """The relative difference of losses that rounding alone may make."""
        return SYNTHETIC_TOLERANCE if self.model is None else self.model.tolerance

    def norm_limits(self, alive: Callable[[], None]) -> dict[str, float]:
        """The largest norm that a row may have, by hook point, by the medians of the first rows; nothing without a limit."""
        multiple = self._stream.max_activation_norm_multiple
        if multiple is None:
            return {}

        def never() -> bool:
            alive()
            return False

        rows, _ = self.harvest(FillStart(), is_look=True).fill(MEDIAN_ROWS, never)
        return {name: multiple * float(np.median(np.linalg.norm(found, axis=1))) for name, found in _as_float32(rows).items()}

    def open_cache(self, cache: ActivationCache | None, ends_here: Callable[[], bool]) -> None:
        """Finds the stream in the activation cache, if the job wants that; see `StreamCache`."""
        if self.model is not None and self._stream.cache != "off":
            widths = {name: self.widths[name] for name in self._hook_names}
            self.cached = StreamCache(self._stream, widths, self.model, self._model_files, cache, ends_here)

    def harvest(self, start: FillStart, limits: Mapping[str, float] | None = None, is_look: bool = False) -> Harvest:
        """Rows from `start` on, those within the limits of `norm_limits`.

        Args:
            is_look: they are read once more to be trained on.
        """
        stream, model = self._stream, self.model
        if model is None:
            return SyntheticHarvest(stream, self._hook_names, start)
        tokens = PackedTokens(stream.text_source[1], "train", model, stream.context_size, stream.prompts, True, self.roots)
        self._documents = tokens.documents
        read = Reading.read if self.cached is None else partial(self.cached.read, is_look)
        return TextHarvest(model, tokens, self._hook_names, model.excluded_tokens(stream.exclude), start, limits, read)

    def tell(self, event: Callable[[str, str], None]) -> None:
        """Tells, as levels and sentences, what has happened as rows were read."""
        if self.cached is not None:
            self.cached.tell(event)

    def close(self, event: Callable[[str, str], None]) -> None:
        """Ends the reading, after which nothing is read, and tells the rest."""
        if self.cached is not None:
            self.cached.close()
        self.tell(event)

    def warnings(self) -> list[str]:
        """What is to be said of the text that has been read."""
        if self._documents is None or not self._documents.n_null:
            return []
        column = self._stream.text_source[1].column
        return [f"stream.dataset.column: {self._documents.n_null} rows have nothing (NULL) in {column!r} and were left out."]


def _as_float32(rows: Mapping[str, Array]) -> dict[str, np.ndarray]:
    return {name: np.asarray(found, np.float32) for name, found in rows.items()}
