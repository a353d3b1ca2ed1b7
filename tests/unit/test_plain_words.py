"""What a user reads of a spec that is wrong: each mistake once, at its place, in plain words."""

import copy
import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from sae_service.architectures import ARCHITECTURES
from sae_service.continuation import Changes
from sae_service.schema import Frozen, pointer
from sae_service.spec import JobSpec

STREAM = {
    "model": {"name": "gpt2", "revision": "main"},
    "dataset": {"path": "a/text", "name": "en", "revision": "main", "held_out_split": "test"},
    "tokens": 1_000_000,
}
SYNTHETIC = {"synthetic": {"n_features": 64, "d_in": 32}, "tokens": 1_000_000}
INITIAL = {"path": "./sae", "sha256": "0" * 64}
WRONG = (None, True, "x", "", "1e6x", 1.5, -1, 10**30, [], [None], [[1]], {}, {"a": 1}, {"kind": []}, "\0")
FOREIGN = re.compile(
    r"(?i)input|extra|tuple|\bstring|\bdictionary\b|regex|pattern|validation|discriminator|\bvalid\b|field required|unable"
)
NEIGHBOURS = re.compile("synthetic|d_sae|batch|hook_name|context_size|target_l0")


def jobs() -> Iterator[tuple[str, dict[str, Any]]]:
    """A job of each architecture with nothing left out, and one of synthetic rows."""
    for kind, architecture in ARCHITECTURES.items():
        sae = {"hook_name": "blocks.1.hook_resid_post", "architecture": architecture.example.model_dump(), "initial": INITIAL}
        yield kind, JobSpec.model_validate({"stream": STREAM, "saes": [sae], "metadata": {"a": "b"}}).model_dump(mode="json")
    yield "synthetic", JobSpec.model_validate({"stream": SYNTHETIC, "saes": [sae | {"hook_name": "hook_synthetic"}]}).model_dump(
        mode="json"
    )


JOBS = dict(jobs())


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The place of every value in a job."""
    if path:
        yield path
    for part, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, part))


def with_value(value: Any, path: tuple[str | int, ...], wrong: Any) -> Any:
    changed = copy.deepcopy(value)
    part = changed
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = wrong
    return changed


def told(value: Any, model: type[Frozen] = JobSpec) -> list[tuple[str, str]]:
    """Each error's place and words."""
    try:
        model.model_validate(value)
    except ValidationError as error:
        return [(pointer(line["loc"], value), line["msg"]) for line in error.errors()]
    return []


@pytest.mark.parametrize("name", JOBS)
def test_a_wrong_value_in_any_field_is_told_once_at_its_place_and_in_our_own_words(name: str) -> None:
    for path in places(JOBS[name]):
        place = "".join(f"/{part}" for part in path)
        for wrong in WRONG:
            errors = told(with_value(JOBS[name], path, wrong))
            assert len({pointer for pointer, _ in errors}) == len(errors), (place, wrong, errors)
            for at, message in errors:
                # A number may be wrong beside another one, which is then blamed.
                assert at.startswith(place) or place.startswith(at) or NEIGHBOURS.search(message), (place, wrong, errors)
                assert not FOREIGN.search(message), (place, wrong, message)
                assert not message.endswith("."), message


@pytest.mark.parametrize("name", JOBS)
def test_an_unknown_name_anywhere_is_told_with_the_names_that_are_known(name: str) -> None:
    parts = [(), *(path for path in places(JOBS[name]) if path[0] != "metadata")]
    for path in parts:
        part: Any = JOBS[name]
        for step in path:
            part = part[step]
        if isinstance(part, dict):
            field = next(iter(sorted(part, key=len, reverse=True)))
            (error,) = told(with_value(JOBS[name], (*path, f"{field}x"), 1))
            assert error[1] == f"there is no field '{field}x'; did you mean '{field}'?"


def sae(**changes: Any) -> dict[str, Any]:
    """A small job's only SAE with changes, as a job."""
    one = {"hook_name": "blocks.1.hook_resid_post", "architecture": {"kind": "topk", "d_sae": 64, "k": 8}} | changes
    return {"stream": STREAM, "saes": [one]}


def stream(**changes: Any) -> dict[str, Any]:
    return sae() | {"stream": STREAM | changes}


@pytest.mark.parametrize(
    ("job", "place", "message"),
    [
        (sae(optimiser={"lr": 1e-3}), "/saes/0/optimiser", "there is no field 'optimiser'; did you mean 'optimizer'?"),
        (sae(architecture={"kind": "topk", "d_sae": 64, "k": 100}), "/saes/0/architecture/k", "must be at most d_sae (64)"),
        (sae(architecture={"kind": "tpk"}), "/saes/0/architecture/kind", "there is no kind 'tpk'; did you mean 'topk'?"),
        (sae(architecture={"d_sae": 64}), "/saes/0/architecture/kind", "is missing"),
        (sae(architecture={"kind": "topk"}, optimizer={"beta1": 0.5}), "/saes/0/architecture/d_sae", "is missing"),
        (sae(architecture="topk"), "/saes/0/architecture", 'must be a mapping of names to values, not "topk"'),
        (sae(optimizer={"lr": "fast"}), "/saes/0/optimizer/lr", 'must be a number, not "fast"'),
        (stream(tokens="1e6"), "/stream/tokens", 'must be a whole number, such as 1000000, not "1e6"'),
        (stream(tokens=1.5e6 + 0.5), "/stream/tokens", "must be a whole number, not 1500000.5"),
        (stream(tokens=[]), "/stream/tokens", "must be a whole number, not a list"),
        (stream(model={"name": ""}), "/stream/model/name", "must not be empty"),
        (stream(model={"name": "a", "dtype": "bf16"}), "/stream/model/dtype", "must be 'float32', 'bfloat16' or 'float16'"),
        (sae() | {"saes": []}, "/saes", "must have 1 or more items"),
        (sae() | {"gpus": 65}, "/gpus", "must be at most 64"),
        (sae() | {"priority": "high"}, "/priority", 'must be a whole number, not "high"'),
        ([], "", "must be a mapping of names to values, not a list"),
        ({"stream": {k: v for k, v in STREAM.items() if k != "tokens"} | {"tokenz": 5}, "saes": sae()["saes"]},
         "/stream/tokenz", "there is no field 'tokenz'; did you mean 'tokens'?"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_error(job: Any, place: str, message: str) -> None:
    assert told(job) == [(place, message)]


def test_an_unknown_name_that_resembles_none_is_told_with_all_that_there_are() -> None:
    ((place, message),) = told(sae() | {"evaluation": {"zzz": 1}})
    assert (place, message) == ("/evaluation/zzz", "there is no field 'zzz'; there are every_tokens, tokens")


def test_a_whole_number_may_be_written_with_a_point_or_with_underscores() -> None:
    assert [JobSpec.model_validate(stream(tokens=tokens)).stream.tokens for tokens in (1e6, "1_000_000")] == [10**6, 10**6]


def test_the_changes_of_a_fork_are_told_in_the_same_words() -> None:
    assert told({"tokens": "1e6", "sae": {}}, Changes) == [
        ("/sae", "there is no field 'sae'; did you mean 'saes'?"),
        ("/tokens", 'must be a whole number, such as 1000000, not "1e6"'),
    ]


@pytest.mark.parametrize("part", ["evaluation", "checkpoints"])
def test_nothing_can_be_done_more_often_than_after_each_step(part: str) -> None:
    job = stream(batch=512)
    assert told(job | {part: {"every_tokens": 511}}) == [(f"/{part}/every_tokens", "must be at least batch (512), or 0")]
    assert told(job | {part: {"every_tokens": 512}}) == []


def test_warm_ups_that_a_user_leaves_out_are_short_in_a_short_job() -> None:
    architecture = {"kind": "jumprelu", "d_sae": 64}
    short, long = ({"stream": STREAM | {"batch": 1000, "tokens": n * 1000}} for n in (1000, 100_000))
    for stream, lr_warm_up, sparsity_warm_up in ((short, 200, 200), (long, 1000, 10_000)):
        (made,) = JobSpec.model_validate(sae(architecture=architecture) | stream).saes
        assert (made.optimizer.lr_warm_up, made.optimizer.sparsity_warm_up) == (lr_warm_up, sparsity_warm_up)
    (own,) = JobSpec.model_validate(sae(architecture=architecture, optimizer={"lr_warm_up": 900}) | short).saes
    assert (own.optimizer.lr_warm_up, own.optimizer.sparsity_warm_up) == (900, 200)


def test_a_spec_is_the_same_after_it_was_stored() -> None:
    for value in JOBS.values():
        assert JobSpec.model_validate(value).model_dump(mode="json") == value
