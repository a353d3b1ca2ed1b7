"""Specs as jobs have them, which an older release may have written, or a newer one."""

from typing import Any

from pydantic import ValidationError

from sae_service.errors import InvalidSpec, WrongVersion
from sae_service.schema import SPEC_VERSION, pointer
from sae_service.spec.job import JobSpec
from sae_service.spec.kinds import SPECS, kind_of


def read(stored: dict[str, Any]) -> Any:
    """The spec of a job, of the class of its kind. Raises WrongVersion for one that this release cannot read."""
    if kind_of(stored) not in SPECS:
        raise WrongVersion(
            f"the job is of a kind that this release does not know: {kind_of(stored)!r}.", hint="Use a later release."
        )
    version = stored.get("schema_version", 1)
    if not isinstance(version, int) or version > SPEC_VERSION:
        raise WrongVersion(
            f"the job's spec is of version {version}, and this release knows none after {SPEC_VERSION}.",
            hint="Use the release that the job was submitted to, or a later one.",
        )
    try:
        return SPECS[kind_of(stored)].model_validate(stored if version == SPEC_VERSION else _from_1(stored))
    except ValidationError as error:
        first = error.errors()[0]
        place = pointer(first["loc"], stored)
        raise WrongVersion(
            f"the job's spec is another release's, and this one does not take it: {place}: {first['msg']}.",
            hint="Submit what it asks for as a new job.",
        ) from error


def read_training(stored: dict[str, Any]) -> JobSpec:
    """The spec of a job that trains SAEs. Raises WrongVersion, and InvalidSpec for a job of another kind."""
    spec = read(stored)
    if not isinstance(spec, JobSpec):
        raise InvalidSpec(f"the job trains no SAEs: its kind is {spec.kind}.", hint="Name a job that does.")
    return spec


def _from_1(stored: dict[str, Any]) -> dict[str, Any]:
    stream = stored.get("stream") or {}
    dataset = stream.get("dataset") or {}
    if dataset.get("held_out_split") is not None and dataset["held_out_split"] == dataset.get("split", "train"):
        # Once it was allowed to measure on the text that is trained on.
        stored = stored | {"stream": stream | {"dataset": dataset | {"held_out_split": None}}}
    return stored
