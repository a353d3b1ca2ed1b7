"""A job that looks at latents, from the SAEs to the published files: what `kind: latents` does."""

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import jax

from sae_service.activations import passages as text
from sae_service.activations.model import LanguageModel
from sae_service.activations.model_check import check
from sae_service.analysis.course import Course, Pace, State, shapes_of
from sae_service.analysis.look import Look
from sae_service.analysis.subjects import subjects
from sae_service.errors import Stopped, located
from sae_service.hub import pinned
from sae_service.news import Checkpoint, stop_if_asked
from sae_service.schema import SAES
from sae_service.spec import LatentsSpec, StreamSpec
from sae_service.storage import artifacts, checkpoint
from sae_service.storage.checkpoint_writer import CheckpointWriter
from sae_service.storage.objects import Content
from sae_service.storage.provenance import provenance
from sae_service.surroundings import Surroundings


def run(job: LatentsSpec, around: Surroundings) -> Checkpoint | None:
    """Looks at the latents of a job's SAEs, which are in the checkpoint to begin with, or of SAEs in folders.

    Returns the final checkpoint, or None if it was asked to stop.

    Raises:
        InvalidSpec, ModelNotFound, DataNotFound, DamagedCheckpoint, StorageFailure: something does not fit, or cannot be read.
    """
    with located("/dataset", "/stream/dataset") if job.dataset is not None else nullcontext():
        return _running(job, around).finished()


def _running(job: LatentsSpec, around: Surroundings) -> "_Running":
    """The attempt, once the model and the SAEs are there and fit."""
    stream = pinned(_stream(job))
    found = subjects(job, around.storage, around.begin_with, around.roots)
    model = LanguageModel(stream.text_source[0], around.device, around.roots)
    checked = check(model, stream.context_size, [subject.place for subject in found.by_name.values()])
    for warning in checked.warnings:
        around.warn(warning)
    saes = {name: subject.placed(checked.widths) for name, subject in found.by_name.items()}
    look = Look(stream if job.dataset is None else text.whole(stream), job, model, saes, found.limits, around.roots)
    made_by = jax.devices()[0].device_kind, around.roots, look.precision
    return _Running(job, look, around, provenance(job.model_dump(mode="json"), stream, *made_by))


def _stream(job: LatentsSpec) -> StreamSpec:
    """The stream with the dataset that is read."""
    assert job.stream is not None, "the stream of a job's SAEs is filled in when the job is submitted"
    return job.stream if job.dataset is None else job.stream.model_copy(update={"dataset": job.dataset})


class _Running:
    """One attempt at a job."""

    def __init__(self, job: LatentsSpec, look: Look, around: Surroundings, source: dict[str, Any]) -> None:
        self._look, self._around, self._source = look, around, source
        self._stop_if_asked = partial(stop_if_asked, around.should_stop, around.alive)
        self._writer, pace = CheckpointWriter(), Pace(job.log_every, job.checkpoints.every_tokens)
        self._course = Course(look, pace, around.reporter, self._stop_if_asked, self._writer, self._publish_state)

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
        read = self._course.n_batches, self._course.n_tokens
        return self._around.publish(self._files(), *read, self._look.figures(), is_final=True)

    def _files(self) -> Iterator[tuple[str, Content]]:
        yield from self._look.files(self._stop_if_asked)
        for name in self._look.passed.tallies:
            yield f"{SAES}{name}/{artifacts.PROVENANCE}", artifacts.as_json(self._source)
