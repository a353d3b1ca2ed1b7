"""What a job may say of the activation cache, and what makes the name of a stream in it."""

from typing import Any

import pytest
from pydantic import ValidationError

from sae_service.activations.cache_key import OF_TRAINING, commit, key
from sae_service.spec import StreamSpec

STREAM: dict[str, Any] = {"model": {"name": "gpt2"}, "dataset": {"path": "a/b"}, "tokens": 1 << 20}
SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("stream", "field", "said"),
    [
        ({"synthetic": {"n_features": 4, "d_in": 4}, "tokens": 8192, "cache": "use"}, "cache", "for the rows of a model"),
        (STREAM | {"cache_dtype": "int8"}, "cache_dtype", "for cached rows"),
        (STREAM | {"cache": "on"}, "cache", "must be"),
        (STREAM | {"cache": True}, "cache", "must be"),
        (STREAM | {"cache": "use", "cache_dtype": "int4"}, "cache_dtype", "must be"),
    ],
)
def test_what_a_job_cannot_want_of_the_cache_is_refused(stream: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said) as refused:
        StreamSpec.model_validate(stream)
    assert refused.value.errors()[0]["loc"] == (field,)


def test_off_may_be_written_as_yaml_reads_it() -> None:
    assert StreamSpec.model_validate(STREAM | {"cache": False}) == StreamSpec.model_validate(STREAM)


@pytest.mark.parametrize(
    ("dtype", "cache_dtype", "rounded_to"),
    [
        ("float32", None, None), ("bfloat16", None, None), ("bfloat16", "float32", None), ("bfloat16", "bfloat16", None),
        ("float32", "bfloat16", "bfloat16"), ("float16", "bfloat16", "bfloat16"), ("bfloat16", "int8", "int8"),
    ],
)  # fmt: skip
def test_only_a_coarser_number_type_rounds_rows(dtype: str, cache_dtype: str | None, rounded_to: str | None) -> None:
    stream = STREAM | {"model": {"name": "gpt2", "dtype": dtype}, "cache": "use", "cache_dtype": cache_dtype}
    assert StreamSpec.model_validate(stream).rounded_to == rounded_to


def test_the_fields_of_training_are_fields_of_a_stream() -> None:
    assert set(OF_TRAINING) < set(StreamSpec.model_fields)
    assert key({"a": 1, "b": 2}) == key({"b": 2, "a": 1}) != key({"a": 1, "b": 3})


def test_files_of_a_hub_are_known_by_their_commit_alone() -> None:
    files = [f"hf://datasets/a/b@{SHA}/train-{index}.parquet" for index in range(2)]
    assert commit(files) == commit(files[::-1]) != commit(files[:1])
    assert commit([]) is None
    assert commit([*files, "hf://datasets/a/b@main/train-2.parquet"]) is None
