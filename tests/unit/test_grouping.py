"""Which SAEs of a job one call steps."""

from typing import Any

import jax
import pytest

from sae_service.sae.sites import at
from sae_service.spec import JobSpec
from sae_service.training import grouping
from sae_service.training.cohort import cohort
from sae_service.training.grouping import groups, rule
from sae_service.training.placement import Place, Placement, mesh_of, placement

HOOK, OTHER = "hook_synthetic", "hook_synthetic_out"


def sae(name: str, **changes: Any) -> dict[str, Any]:
    return {"name": name, "hook_name": HOOK, "architecture": {"kind": "topk", "d_sae": 64, "k": 4}} | changes


def job(*saes: dict[str, Any], d_in: int = 16, batch: int = 64) -> JobSpec:
    stream = {"synthetic": {"n_features": 24, "d_in": d_in}, "tokens": 4 * batch, "batch": batch}
    return JobSpec.model_validate({"stream": stream, "saes": saes})


def found(spec: JobSpec, placed: Placement | None = None) -> list[tuple[str, ...]]:
    widths = dict.fromkeys((HOOK, OTHER), 16)
    return [group.names for group in groups(spec, {item.name: item.sites(widths) for item in spec.saes}, placed or placement(spec))]


def test_saes_that_differ_in_numbers_alone_are_together() -> None:
    spec = job(
        sae("a"),
        sae("b", architecture={"kind": "topk", "d_sae": 64, "k": 8}, seed=3),
        sae("c", optimizer={"lr": 0.1, "lr_warm_up": 2}, dead_after_tokens=70, normalization="none"),
    )
    assert found(spec) == [("a", "b", "c")]


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": {"kind": "topk", "d_sae": 128, "k": 4}},
        {"architecture": {"kind": "batchtopk", "d_sae": 64, "k": 4}},
        {"hook_name": OTHER},
        {"hook_name_out": OTHER},
        {"precision": "bfloat16"},
        {"optimizer": {"second_moment": "int8"}},
        {"optimizer": {"first_moment": "bfloat16"}},
    ],
    ids=str,
)
def test_what_is_compiled_in_is_not_mixed(changes: dict[str, Any]) -> None:
    assert found(job(sae("a"), sae("other", **changes), sae("c"))) == [("a", "c"), ("other",)]


def test_an_sae_that_is_split_is_alone() -> None:
    spec, place = job(sae("a"), sae("b"), sae("c"), sae("d")), Place(mesh_of(jax.devices()[:1]))
    split = Place(place.mesh, "d_sae")
    assert found(spec, Placement({"a": place, "b": split, "c": place, "d": split})) == [("a", "c"), ("b",), ("d",)]


@pytest.mark.parametrize(
    ("d_in", "d_sae", "batch", "backend", "way"),
    [
        (64, 256, 256, "cpu", "looped"),
        (256, 4096, 1024, "cpu", "alone"),
        (64, 256, 256, "gpu", "vectorised"),
        (128, 1024, 1024, "gpu", "vectorised"),
        (256, 4096, 1024, "gpu", "alone"),
        (64, 256, 256, "tpu", "alone"),
    ],
)
def test_only_where_a_step_is_short_beside_its_call(d_in: int, d_sae: int, batch: int, backend: str, way: str) -> None:
    spec = job(sae("a", architecture={"kind": "topk", "d_sae": d_sae, "k": 4}), d_in=d_in, batch=batch)
    one = cohort(spec.saes[0], at(HOOK, d_in), placement(spec).by_sae["a"])
    assert rule(one, batch, backend) == way


def test_no_more_are_stepped_at_once_than_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "rule", lambda *given: "vectorised")
    monkeypatch.setattr(grouping, "MOST_ACTS", 2 * 64 * 64)
    assert found(job(*(sae(name) for name in "abcde"))) == [("a", "b"), ("c", "d"), ("e",)]


def test_it_is_said_in_words() -> None:
    wide = sae("wide", architecture={"kind": "topk", "d_sae": 4096, "k": 4})
    spec = job(sae("a"), wide, sae("b"), batch=1024)
    sites = {item.name: at(HOOK, 16) for item in spec.saes}
    assert grouping.said(groups(spec, sites, placement(spec))) == (
        "Operations on latents: dense (a, b); sparse with 64 slots a row (wide). Steps: in one call, looped (a, b)."
    )
    assert grouping.said(groups(job(wide), sites, placement(spec))).endswith("(wide). Steps: one by one.")
