"""The end of a training job that looks at the latents of its own SAEs, and what it keeps of that from one attempt to the next.

The look comes last, when the SAEs are trained and measured. A checkpoint of it has all that one of training has, so that any of
them can be resumed, forked and downloaded, and beside that the state of the look and the figures that were measured before.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from sae_service import hosts
from sae_service.analysis.course import Course, Pace, State, shapes_of
from sae_service.analysis.look import Look
from sae_service.news import stop_if_asked
from sae_service.spec import JobSpec
from sae_service.storage.checkpoint_writer import CheckpointWriter
from sae_service.surroundings import Surroundings

KEY = "latents/"
"""Where it is among the states of SAEs, of which none can be called so, and among the values."""


class Begun(NamedTuple):
    """A look that has been begun, and the held-out figures of the SAEs."""

    seen: State
    measured: dict[str, Any]


def shapes(values: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a checkpoint beside those of training."""
    return {KEY: shapes_of(values[KEY])} if KEY in values else {}


def taken_out(job: JobSpec, states: dict[str, Any], values: Mapping[str, Any]) -> Begun | None:
    """What a checkpoint knows of the look that the job asks for, out of its states; None of another look, such as a parent's."""
    arrays, known = states.pop(KEY, None), values.get(KEY)
    if known is None or known["of"] != _what_counts(job):
        return None
    return Begun((arrays, known), known["measured"])


def put_in(
    job: JobSpec, states: Mapping[str, Any], values: Mapping[str, Any], begun: Begun
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The states and the values of a checkpoint with those of a look."""
    arrays, known = begun.seen
    return {**states, KEY: arrays}, {**values, KEY: {**known, "measured": begun.measured, "of": _what_counts(job)}}


def course(
    job: JobSpec, look: Look, around: Surroundings, writer: CheckpointWriter, publish: Callable[[State, int, int], Any],
    begun: Begun | None,
) -> Course:  # fmt: skip
    """The way of the look through its text, behind all steps of training. Several hosts go it side by side, and stop together.

    Args:
        publish: see `Course`.
        begun: what it goes on from.
    """
    stops = partial(stop_if_asked, hosts.any_of(around.should_stop), around.alive)
    pace, before = Pace(job.log_every, job.checkpoints.every_tokens), (job.stream.n_steps, job.stream.n_steps * job.stream.batch)
    found = Course(look, pace, around.reporter, stops, writer, publish, before=before, n_saved=-1)
    if begun is not None:
        found.go_on_from(begun.seen)
    return found


def _what_counts(job: JobSpec) -> dict[str, Any]:
    """What a look and the figures depend on: a fork may want another one."""
    return job.model_dump(mode="json", include={"stream", "saes", "evaluation", "latents"})
