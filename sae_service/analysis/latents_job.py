"""A job that looks at latents, from the SAEs to the published files: what `kind: latents` does."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any
from uuid import uuid4

import jax

from sae_service.activations import passages as text
from sae_service.activations.model import LanguageModel
from sae_service.activations.model_check import check
from sae_service.analysis.look import Look
from sae_service.analysis.subjects import subjects
from sae_service.errors import Stopped, located
from sae_service.hub import pinned
from sae_service.news import Checkpoint, Reporter
from sae_service.readable import EVERYWHERE, Roots
from sae_service.schema import SAES
from sae_service.spec import LatentsSpec, StreamSpec
from sae_service.storage import artifacts, checkpoint
from sae_service.storage.cache import ActivationCache
from sae_service.storage.checkpoint_writer import CheckpointWriter, on_host
from sae_service.storage.objects import Content, Storage
from sae_service.storage.provenance import provenance

Files = Mapping[str, Content] | Iterator[tuple[str, Content]]


def run(
    job: LatentsSpec,
    storage: Storage,
    prefix: str,
    reporter: Reporter,
    should_stop: Callable[[], bool] = lambda: False,
    resume_from: Sequence[str] = (),
    begin_with: str | None = None,
    device: str = "cpu",
    alive: Callable[[], None] = lambda: None,
    roots: Roots = EVERYWHERE,
    cache: ActivationCache | None = None,
) -> Checkpoint | None:
    """Looks at the latents of a job's SAEs. Returns the final checkpoint, or None if it was asked to stop.

    Args:
        begin_with: key of the checkpoint that the SAEs are in; the other arguments are as in `pipeline.run`.
        cache: is not used.

    Raises:
        InvalidSpec, ModelNotFound, DataNotFound, DamagedCheckpoint, StorageFailure: something does not fit, or cannot be read.
    """
    with located("/dataset", "/stream/dataset") if job.dataset is not None else nullcontext():
        return _running(job, storage, prefix, reporter, should_stop, begin_with, device, alive, roots).finished(resume_from)


def _running(
    job: LatentsSpec, storage: Storage, prefix: str, reporter: Reporter, should_stop: Callable[[], bool], begin_with: str | None,
    device: str, alive: Callable[[], None], roots: Roots,
) -> "_Running":  # fmt: skip
    """The attempt, once the model and the SAEs are there and fit."""
    stream = pinned(_stream(job))
    found = subjects(job, storage, begin_with, roots)
    model = LanguageModel(stream.text_source[0], device, roots)
    checked = check(model, stream.context_size, [subject.place for subject in found.by_name.values()])
    for warning in checked.warnings:
        reporter.event("warning", warning)
    saes = {name: subject.placed(checked.widths) for name, subject in found.by_name.items()}
    look = Look(stream if job.dataset is None else text.whole(stream), job, model, saes, found.limits, roots)
    made_by = jax.devices()[0].device_kind, roots, look.precision
    source = provenance(job.model_dump(mode="json"), stream, *made_by)
    return _Running(job, look, storage, prefix, reporter, should_stop, alive, source)


def _stream(job: LatentsSpec) -> StreamSpec:
    """The stream with the dataset that is read."""
    assert job.stream is not None, "the stream of a job's SAEs is filled in when the job is submitted"
    return job.stream if job.dataset is None else job.stream.model_copy(update={"dataset": job.dataset})


class _Running:
    """One attempt at a job."""

    def __init__(
        self, job: LatentsSpec, look: Look, storage: Storage, prefix: str, reporter: Reporter, should_stop: Callable[[], bool],
        alive: Callable[[], None], source: dict[str, Any],
    ) -> None:  # fmt: skip
        self._job, self._look, self._storage, self._prefix, self._reporter = job, look, storage, prefix, reporter
        self._should_stop, self._alive, self._source = should_stop, alive, source
        self._context_size = _stream(job).context_size
        self._writer, self._began = CheckpointWriter(), time.monotonic()
        self._n_batches = self._n_saved = self._n_at_start = 0

    def finished(self, resume_from: Sequence[str]) -> Checkpoint | None:
        """Goes on to the end, or until it should stop, and saves that."""
        try:
            self._go_on_from(resume_from)
            self._pass_over_text()
            self._writer.finish()
            return self._publish_results()
        except Stopped:
            self._save()
            self._writer.finish()
            return None
        finally:
            self._writer.close()

    def _go_on_from(self, resume_from: Sequence[str]) -> None:
        with on_host():
            found = checkpoint.restored(self._storage, resume_from, None, _shapes, partial(self._reporter.event, "warning"))
        if found is not None:
            self._look.restore(*found)
            self._n_batches = self._n_saved = found[1]["n_batches"]
        self._n_at_start = self._n_tokens

    @property
    def _n_tokens(self) -> int:
        """Tokens that have been read, those that are left out too."""
        return self._look.passed.n_prompts * self._context_size

    def _pass_over_text(self) -> None:
        """Reads what is left. Raises Stopped."""
        self._reporter.event("info", f"Reading {self._look.n_prompts * self._context_size:,} tokens.")
        every = self._job.checkpoints.every_tokens
        self._stop_if_asked()
        for batch in self._look.batches():
            self._n_batches += 1
            self._writer.check()
            if self._n_batches % self._job.log_every == 0:
                self._tell()
            self._stop_if_asked()
            n_before = self._n_tokens - batch.tokens.size
            if (self._n_tokens // every > n_before // every) if every else self._writer.is_due():
                self._save()
        if self._n_tokens <= self._job.tokens - self._context_size:
            self._reporter.event("info", f"The text has only {self._n_tokens:,} tokens; {self._job.tokens:,} were asked for.")
        self._tell()

    def _stop_if_asked(self) -> None:
        """Shows a sign of life. Raises Stopped."""
        self._alive()
        if self._should_stop():
            raise Stopped

    def _tell(self) -> None:
        """Reports how far it is."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        pace = {"step": self._n_batches, "tokens": self._n_tokens, "tokens_per_s": (self._n_tokens - self._n_at_start) / seconds}
        self._reporter.metrics([{"sae": name, **pace, **found} for name, found in self._look.figures().items()])

    def _save(self) -> None:
        """Publishes a checkpoint while the text is read on, if the last one does not have it all."""
        if self._n_saved < self._n_batches:
            self._n_saved = self._n_batches
            self._writer.write(lambda: partial(self._publish_state, *self._look.state(), self._n_batches, self._n_tokens))

    def _publish_state(self, state: dict[str, Any], values: dict[str, Any], n_batches: int, n_tokens: int) -> None:
        files = checkpoint.to_files(state, values | {"n_batches": n_batches})
        self._publish(files, n_batches, n_tokens, {}, is_final=False)

    def _publish_results(self) -> Checkpoint:
        """Makes the files and publishes them as the final checkpoint. Raises Stopped, and then leaves none of them."""
        self._reporter.event("info", "Looking at the directions of the latents.")
        return self._publish(self._files(), self._n_batches, self._n_tokens, self._look.figures(), is_final=True)

    def _files(self) -> Iterator[tuple[str, Content]]:
        for path, content in self._look.files(self._stop_if_asked):
            yield f"{SAES}{path}", content
        for name in self._look.passed.tallies:
            yield f"{SAES}{name}/{artifacts.PROVENANCE}", artifacts.as_json(self._source)

    def _publish(self, files: Files, step: int, tokens: int, metrics: dict[str, Any], is_final: bool) -> Checkpoint:
        key = f"{self._prefix}/step-{step:09d}-{uuid4().hex[:12]}"
        began = time.monotonic()
        try:
            entries = self._storage.publish(key, files)
        except Stopped:
            self._storage.delete(key)
            raise
        written = Checkpoint(key, step, tokens, is_final, entries, metrics, None, time.monotonic() - began)
        self._reporter.checkpoint(written)
        return written


def _shapes(values: dict[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a checkpoint, as its values describe them."""
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in values["shapes"].items()}
