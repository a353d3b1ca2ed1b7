"""Whole numbers in a spec: each has a largest value, and whatever is sent is taken and can be stored, or refused by name."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sae_service.architectures import ARCHITECTURES
from sae_service.jobs.database import Database
from sae_service.jobs.migration import migrate
from sae_service.jobs.store import JobStore
from sae_service.schema import SPEC_VERSION
from sae_service.spec import JobSpec

JOBS: list[dict[str, Any]] = [
    {
        "stream": {"model": {"name": "gpt2"}, "dataset": {"path": "a/b"}, "tokens": 1 << 20, "exclude": ["bos", 3]},
        "saes": [{"hook_name": "hook_embed", "architecture": {"kind": kind, "d_sae": 64}} for kind in sorted(ARCHITECTURES)],
        "gpus": 2,
    },
    {
        "stream": {"synthetic": {"n_features": 8, "d_in": 4}, "tokens": 1 << 20},
        "saes": [{"hook_name": "hook_synthetic", "architecture": {"kind": "topk", "d_sae": 64}}],
    },
]
COMPLETE = [JobSpec.model_validate(job).model_dump(mode="json") for job in JOBS]


def integers(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in `value` there are whole numbers."""
    if isinstance(value, int) and not isinstance(value, bool):
        yield path
    elif isinstance(value, dict | list):
        for part, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from integers(item, (*path, part))


PLACES = [(index, path) for index, job in enumerate(COMPLETE) for path in integers(job)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> JobStore:
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('numbers') / 'service.db'}")
    migrate(database)
    return JobStore(database)


@given(place=st.sampled_from(PLACES), number=st.one_of(st.integers(), st.integers(0, 70).map(lambda n: (1 << n) - 1)))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_number_is_taken_and_stored_or_refused_by_name(
    store: JobStore, place: tuple[int, tuple[Any, ...]], number: int
) -> None:
    index, path = place
    job = copy.deepcopy(COMPLETE[index])
    part: Any = job
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = number
    try:
        spec = JobSpec.model_validate(job)
    except ValidationError as refusal:
        blamed = [found["loc"] for found in refusal.errors()]
        assert () not in blamed
        return
    assert spec.stream.n_steps < 1 << 31
    stored, _ = store.submit(spec.model_dump(mode="json"))
    assert stored.spec == json.loads(spec.model_dump_json())
    assert max(abs(value) for value in numbers(stored.spec)) < 1 << 53


def numbers(value: Any) -> Iterator[int]:
    for path in integers(value):
        found = value
        for part in path:
            found = found[part]
        yield found


def unbounded(schema: Any, path: str = "") -> Iterator[str]:
    """Where a JSON schema has whole numbers without a largest or a smallest value."""
    if isinstance(schema, dict):
        if schema.get("type") == "integer" and "enum" not in schema and not (
            {"maximum", "exclusiveMaximum"} & schema.keys() and {"minimum", "exclusiveMinimum"} & schema.keys()
        ):
            yield path
        for name, item in schema.items():
            yield from unbounded(item, f"{path}/{name}")
    elif isinstance(schema, list):
        for item in schema:
            yield from unbounded(item, path)


def test_every_whole_number_of_a_spec_has_bounds() -> None:
    assert list(unbounded(JobSpec.model_json_schema())) == []


def test_a_job_has_no_more_steps_than_are_counted() -> None:
    job = copy.deepcopy(COMPLETE[0])
    job["stream"] |= {"batch": 1, "buffer_rows": 0, "tokens": 1 << 31}
    with pytest.raises(ValidationError, match="most steps") as refused:
        JobSpec.model_validate(job)
    assert refused.value.errors()[0]["loc"] == ("stream", "tokens")


@pytest.mark.parametrize("version", [1, SPEC_VERSION])
def test_a_spec_of_either_version_is_taken_and_is_of_this_one(version: int) -> None:
    assert JobSpec.model_validate(JOBS[0] | {"schema_version": version}).schema_version == SPEC_VERSION


@pytest.mark.parametrize("version", [0, SPEC_VERSION + 1, "1", None])
def test_a_spec_of_another_version_is_refused(version: object) -> None:
    with pytest.raises(ValidationError) as refused:
        JobSpec.model_validate(JOBS[0] | {"schema_version": version})
    assert refused.value.errors()[0]["loc"] == ("schema_version",)
