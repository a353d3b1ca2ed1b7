"""Specs as jobs have them, which an older release may have written, or a newer one."""

from typing import Any

from pydantic import ValidationError

from sae_service.errors import WrongVersion
from sae_service.schema import SPEC_VERSION, pointer
from sae_service.spec.job import JobSpec


def read(stored: dict[str, Any]) -> JobSpec:
    """The spec of a job. Raises WrongVersion for one that this release cannot read."""
    version = stored.get("schema_version", 1)
    if not isinstance(version, int) or version > SPEC_VERSION:
        raise WrongVersion(
            f"the job's spec is of version {version}, and this release knows none after {SPEC_VERSION}.",
            hint="Use the release that the job was submitted to, or a later one.",
        )
    try:
        return JobSpec.model_validate(stored if version == SPEC_VERSION else _from_1(stored))
    except ValidationError as error:
        first = error.errors()[0]
        place = pointer(first["loc"], stored)
        raise WrongVersion(
            f"the job's spec is another release's, and this one does not take it: {place}: {first['msg']}.",
            hint="Submit what it asks for as a new job.",
        ) from error


def _from_1(stored: dict[str, Any]) -> dict[str, Any]:
    stream = stored.get("stream") or {}
    dataset = stream.get("dataset") or {}
    if dataset.get("held_out_split") is not None and dataset["held_out_split"] == dataset.get("split", "train"):
        # Once it was allowed to measure on the text that is trained on.
        stored = stored | {"stream": stream | {"dataset": dataset | {"held_out_split": None}}}
    return stored
