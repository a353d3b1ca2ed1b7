"""A job that measures what a model's activations are like, from the model to the published files: what `kind: statistics` does."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax

from sae_service.activations.model import LanguageModel
from sae_service.activations.model_check import check_reads
from sae_service.analysis.course import Course, Pace, State, shapes_of
from sae_service.analysis.statistics import results
from sae_service.analysis.statistics.files import FOLDER
from sae_service.analysis.statistics.measuring import Measuring
from sae_service.errors import Stopped
from sae_service.hub import pinned
from sae_service.news import Checkpoint, stop_if_asked
from sae_service.spec import StatisticsSpec, StreamSpec
from sae_service.storage import artifacts, checkpoint
from sae_service.storage.checkpoint_writer import CheckpointWriter
from sae_service.storage.objects import Content
from sae_service.storage.provenance import provenance
from sae_service.surroundings import Surroundings

SAID = "Measuring activations", "Measuring the weights of attention heads."


def run(job: StatisticsSpec, around: Surroundings) -> Checkpoint | None:
    """Measures a model's activations, attention and weights.

    Returns the final checkpoint, or None if it was asked to stop.

    Raises:
        InvalidSpec, ModelNotFound, DataNotFound, DamagedCheckpoint, StorageFailure: something does not fit, or cannot be read.
    """
    stream = pinned(job.stream)
    model = LanguageModel(stream.text_source[0], around.device, around.roots)
    widths = check_reads(model, stream.context_size, _pointers(job, model))
    measuring = Measuring(stream, job, model, widths, around.roots, around.alive)
    for warning in model.warnings:
        around.warn(warning)
    source = provenance(job.model_dump(mode="json"), stream, jax.devices()[0].device_kind, around.roots, model.precisions)
    return _Running(job, stream, model, measuring, around, source).finished()


def _pointers(job: StatisticsSpec, model: LanguageModel) -> dict[str, str]:
    """The hook points that are measured, each with the field that names it."""
    if job.hook_names:
        return {name: f"/hook_names/{index}" for index, name in enumerate(job.hook_names)}
    return {f"blocks.{layer}.hook_resid_post": "/hook_names" for layer in range(model.bridge.cfg.n_layers)}


class _Running:
    """One attempt at a job."""

    def __init__(
        self, job: StatisticsSpec, stream: StreamSpec, model: LanguageModel, measuring: Measuring, around: Surroundings,
        source: dict[str, Any],
    ) -> None:  # fmt: skip
        self._job, self._stream, self._model, self._measuring, self._around = job, stream, model, measuring, around
        self._source = source
        self._stop_if_asked = partial(stop_if_asked, around.should_stop, around.alive)
        self._writer, pace = CheckpointWriter(), Pace(job.log_every, job.checkpoints.every_tokens)
        self._course = Course(measuring, pace, around.reporter, self._stop_if_asked, self._writer, self._publish_state, said=SAID)

    def finished(self) -> Checkpoint | None:
        """Goes on to the end, or until it should stop, and saves that."""
        try:
            found = checkpoint.restored(self._around.storage, self._around.resume_from, None, shapes_of, self._around.warn)
            if found is not None:
                self._course.go_on_from(found)
            return self._course.to_end(self._publish_results)
        except Stopped:
            return None
        finally:
            self._writer.close()

    def _publish_state(self, state: State, n_batches: int, n_tokens: int) -> None:
        self._around.publish(checkpoint.to_files(*state), n_batches, n_tokens, {}, is_final=False)

    def _publish_results(self) -> Checkpoint:
        """Makes the files and publishes them as the final checkpoint. Raises Stopped."""
        return self._around.publish(self._files(), self._course.n_batches, self._course.n_tokens, {}, is_final=True)

    def _files(self) -> Iterator[tuple[str, Content]]:
        found = self._measuring.found
        yield from results.to_files(found, self._stream, self._model, self._stop_if_asked).items()
        yield f"{FOLDER}{artifacts.PROVENANCE}", artifacts.as_json(self._source)
