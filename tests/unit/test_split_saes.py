"""An SAE that is split over several devices takes the steps that it would take on one."""

import json
import math
import os
import subprocess
import sys
from typing import Any

import jax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec
from pydantic import ValidationError

from sae_service.architectures import ARCHITECTURES
from sae_service.continuation import Changes, continued
from sae_service.errors import InvalidSpec
from sae_service.kernels.sharded import AXIS
from sae_service.schema import pointer
from sae_service.spec import JobSpec
from sae_service.training import memory, start
from sae_service.training.placement import Place, Placement, axes_of, placement, shortage
from tests.benchmarks import wide
from tests.planted import BATCH
from tests.synthetic_jobs import job

BY_LATENTS = [f"{kind}:autoencoder:latents" for kind in ARCHITECTURES] + ["topk:transcoder:latents", "jumprelu:crosscoder:latents"]
BY_ROWS = [f"{kind}:autoencoder:batch" for kind in ("topk", "batchtopk", "jumprelu", "gated")]
"""What takes the largest of a row, of a batch, what looks at dead latents, and what decodes twice: the other kinds do no more."""
CASES = BY_LATENTS + BY_ROWS
D_SAE = 64
"""Of the examples."""


@pytest.fixture(scope="module")
def compared() -> dict[str, dict[str, Any]]:
    """What `split_steps` finds, by case."""
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    ended = subprocess.run(
        [sys.executable, "-m", "tests.split_steps", *CASES],
        capture_output=True, text=True, env=os.environ | {"XLA_FLAGS": flags},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return {found["case"]: found for found in map(json.loads, ended.stdout.splitlines())}


@pytest.mark.parametrize("case", CASES)
def test_its_parameters_are_those_of_steps_on_one_device(case: str, compared: dict[str, dict[str, Any]]) -> None:
    assert compared[case]["parameters"] < 1e-5
    assert compared[case]["since_fired"] == 0


@pytest.mark.parametrize("case", BY_LATENTS)
def test_no_array_with_an_axis_of_latents_is_whole_on_a_device(case: str, compared: dict[str, dict[str, Any]]) -> None:
    assert compared[case]["whole"] == 0


@pytest.mark.parametrize("case", sorted({*CASES} - {"matryoshka:autoencoder:latents"}))
def test_the_latents_of_a_batch_never_move_between_devices(case: str, compared: dict[str, dict[str, Any]]) -> None:
    """Matryoshka's sums of [prefixes, batch, d_write] are larger than these are here."""
    moved = compared[case]["moved"]
    assert math.prod(map(int, moved.split(","))) < BATCH * D_SAE, moved


def test_every_axis_of_a_state_has_a_name() -> None:
    """A rule by shape would take d_in for d_sae where they are equal."""
    for sae in JobSpec.model_validate(job(10)).saes:
        state = start.shapes(sae, sae.sites({"hook_synthetic": sae.architecture.d_sae}))
        split = Place(AbstractMesh((2,), (AXIS,)), "d_sae").of(state)
        coder = getattr(split.parameters, "coder", split.parameters)
        wanted = [PartitionSpec(None, AXIS), PartitionSpec(AXIS, None), PartitionSpec(AXIS), PartitionSpec()]
        assert [part.spec for part in (coder.W_enc, coder.W_dec, coder.b_enc, coder.b_dec)] == wanted
        assert getattr(split.optimizer.nu, "coder", split.optimizer.nu).W_enc.spec == coder.W_enc.spec
    assert axes_of(dict[str, int]) is None


@pytest.mark.parametrize(("kept", "n_whole"), [("int8", 1), ("factored", 0)])
def test_moments_in_less_memory_are_split_with_their_weights(kept: str, n_whole: int) -> None:
    """Of W_enc in int8 the largest of each block of latents are whole: such a block may lie on two devices."""
    spec = split_job("latents", d_sae=512)
    spec["saes"][0]["optimizer"]["second_moment"] = kept
    (sae,) = JobSpec.model_validate(spec).saes
    state = start.shapes(sae, sae.sites({"hook_synthetic": 16}))
    found, shapes = (tree.optimizer.nu.coder for tree in (Place(AbstractMesh((4,), (AXIS,)), "d_sae").of(state), state))
    pairs = zip(jax.tree.leaves((found.W_enc, found.W_dec)), jax.tree.leaves((shapes.W_enc, shapes.W_dec)), strict=True)
    assert sum(place.is_fully_replicated for place, leaf in pairs if leaf.shape != (16,)) == n_whole


def split_job(shard: str, gpus: int = 4, d_sae: int = 32, **stream: int) -> dict[str, Any]:
    whole = job(16, gpus=gpus)
    whole["saes"] = [whole["saes"][1] | {"shard": shard, "architecture": {"kind": "batchtopk", "d_sae": d_sae, "k": 3}}]
    whole["stream"] |= stream
    return whole


@pytest.mark.parametrize(
    ("wrong", "place", "message"),
    [
        (split_job("latents", gpus=1), "/saes/0/shard", "needs several gpus"),
        (split_job("latents", d_sae=34), "/saes/0/architecture/d_sae", "must be a multiple of gpus (4)"),
        (split_job("batch", batch=62), "/stream/batch", "must be a multiple of gpus (4)"),
        (split_job("none"), "/gpus", "unless its shard says otherwise"),
        (split_job("rows"), "/saes/0/shard", "must be 'none', 'latents' or 'batch'"),
    ],
)
def test_what_cannot_be_split_is_refused_with_its_field(wrong: dict[str, Any], place: str, message: str) -> None:
    with pytest.raises(ValidationError) as refused:
        JobSpec.model_validate(wrong)
    (error,) = refused.value.errors()
    assert pointer(error["loc"], wrong) == place
    assert message in error["msg"]


def test_with_fewer_devices_than_asked_for_a_job_says_so_and_does_with_them() -> None:
    spec = JobSpec.model_validate(split_job("latents"))
    there = len(jax.devices())
    assert there == 1
    found = placement(spec)
    assert found.by_sae["batchtopk"].devices == tuple(jax.devices())
    assert found.by_sae["batchtopk"].split is None
    assert shortage(spec, found) == ["gpus: 4 were asked for, and the SAEs share the 1 that there are; batchtopk is not split."]


def test_a_plan_counts_what_one_device_has() -> None:
    spec = JobSpec.model_validate(split_job("latents", d_sae=4096))
    sites = {sae.name: sae.sites({"hook_synthetic": 256}) for sae in spec.saes}

    def plan(n_devices: int, split: str | None) -> memory.MemoryPlan:
        place = Place(AbstractMesh((n_devices,), (AXIS,)), split)
        return memory.plan(spec, sites, Placement({"batchtopk": place}), 1024, {})

    one, latents, batch = plan(1, None), plan(4, "d_sae"), plan(4, "batch")
    whole, split = one.training | one.evaluation, latents.training | latents.evaluation
    for purpose in ("SAE and optimizer state", "step", "evaluation"):
        # The rows, and what is written for them, are whole on every device.
        assert whole[purpose] / 4 < split[purpose] < whole[purpose] / 3
    assert batch.training["SAE and optimizer state"] == one.training["SAE and optimizer state"]
    assert batch.training["step"] < one.training["step"]
    assert one.checkpoint == latents.checkpoint == batch.checkpoint


def test_a_fork_may_be_split_otherwise() -> None:
    parent = JobSpec.model_validate(split_job("batch", gpus=2))
    forked = continued(parent, Changes.model_validate({"gpus": 4, "saes": {"batchtopk": {"shard": "latents"}}}), 0)
    assert (forked.gpus, forked.saes[0].shard) == (4, "latents")
    assert continued(parent, Changes(), 0).saes[0].shard == "batch"
    with pytest.raises(InvalidSpec) as refused:
        continued(parent, Changes(gpus=1), 0)
    assert refused.value.param == "/saes/batchtopk/shard"


def test_the_page_about_wide_saes_is_what_the_plan_says() -> None:
    assert wide.RESULT.read_text() == wide.page()
    assert wide.sent(1 << 20, 8)["sum"] == 2 * 7 / 8 * 4 * wide.BATCH * wide.D_IN
