"""Specs that another release has stored."""

from typing import Any

import pytest

from sae_service.errors import WrongVersion
from sae_service.schema import SPEC_VERSION
from sae_service.spec import JobSpec
from sae_service.spec.stored import read

JOB: dict[str, Any] = {
    "stream": {"model": {"name": "gpt2"}, "dataset": {"path": "a/b"}, "tokens": 1 << 20},
    "saes": [{"hook_name": "hook_embed", "architecture": {"kind": "topk", "d_sae": 64}}],
}


def stored(version: int, **dataset: Any) -> dict[str, Any]:
    spec = JobSpec.model_validate(JOB).model_dump(mode="json")
    spec["stream"]["dataset"] |= dataset
    return spec | {"schema_version": version}


def test_what_this_release_has_stored_is_read_as_it_is() -> None:
    spec = JobSpec.model_validate(JOB)
    assert read(spec.model_dump(mode="json")) == spec


def test_a_spec_of_the_first_version_is_read_as_one_of_this() -> None:
    assert read(stored(1)) == JobSpec.model_validate(JOB)


def test_an_old_job_that_measured_on_the_text_that_it_was_trained_on_holds_out_a_share_of_it() -> None:
    dataset = read(stored(1, split="validation", held_out_split="validation")).stream.dataset
    assert dataset is not None
    assert (dataset.split, dataset.held_out_split) == ("validation", None)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (stored(SPEC_VERSION + 1), f"version {SPEC_VERSION + 1}"),
        (stored(1) | {"unheard_of": 1}, "/unheard_of"),
        (stored(SPEC_VERSION) | {"log_every": 1 << 40}, "/log_every"),
        ({}, "/stream"),
        ({"schema_version": "two"}, "version two"),
    ],
)
def test_a_spec_that_this_release_cannot_read_says_so(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(WrongVersion, match=said):
        read(spec)
