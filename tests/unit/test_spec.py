"""What a job's spec refuses by itself."""

from typing import Any

import pytest
from pydantic import ValidationError

from sae_service.schema import pointer, with_nul
from sae_service.spec import JobSpec


def test_every_string_with_nul_is_found_wherever_it_is() -> None:
    value = {"a": "\0", "b": ["x", {"c": "y\0z"}], "d": ({"e": "x"}, "\0"), "f": 0, "g": None}
    assert list(with_nul(value)) == [("a",), ("b", 1, "c"), ("d", 1)]


@pytest.mark.parametrize(("context_size", "prompts"), [(128, 32), (1024, 4), (3000, 1), (1 << 20, 1)])
def test_a_pass_has_about_so_many_tokens_and_the_number_of_its_rows_is_part_of_the_spec(
    spec: dict[str, Any], context_size: int, prompts: int
) -> None:
    spec["stream"] |= {"context_size": context_size}
    spec["evaluation"] = {"tokens": 1 << 20}
    del spec["stream"]["prompts"]
    job = JobSpec.model_validate(spec)
    assert job.model_dump(mode="json")["stream"]["prompts"] == prompts
    spec["stream"]["prompts"] = 16
    assert JobSpec.model_validate(spec).stream.prompts == 16


@pytest.mark.parametrize("place", ["/stream/dataset/path", "/stream/dataset/held_out_split", "/stream/model/name"])
def test_nul_in_a_spec_is_refused_with_the_place_of_the_string(spec: dict[str, Any], place: str) -> None:
    *parents, last = place.split("/")[1:]
    part = spec
    for name in parents:
        part = part[name]
    part[last] = "/some\0where"
    with pytest.raises(ValidationError, match="NUL") as refused:
        JobSpec.model_validate(spec)
    (error,) = refused.value.errors()
    assert pointer(error["loc"], spec) == place


@pytest.mark.parametrize(
    "place", ["/checkpoints/keep", "/checkpoints/every_tokens", "/evaluation/tokens", "/evaluation/every_tokens", "/log_every"]
)
def test_no_number_is_larger_than_what_a_database_can_hold(spec: dict[str, Any], place: str) -> None:
    *parents, last = place.split("/")[1:]
    part = spec
    for name in parents:
        part = part.setdefault(name, {})
    part[last] = 1 << 63
    with pytest.raises(ValidationError) as refused:
        JobSpec.model_validate(spec)
    (error,) = refused.value.errors()
    assert pointer(error["loc"], spec) == place
