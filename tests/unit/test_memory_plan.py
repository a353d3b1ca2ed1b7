"""What a job is said to need, and what is refused because a device has less."""

from typing import Any

import pytest

from sae_service.errors import OutOfMemory
from sae_service.spec import JobSpec
from sae_service.spec.stream import SAMPLE_ROWS
from sae_service.training import memory
from sae_service.training.memory import GIB, Limits, MemoryPlan
from sae_service.training.placement import placement

D_IN, D_SAE, BATCH = 256, 4096, 512
STATE = 3 * 4 * 2 * D_IN * D_SAE
PLENTY = 1 << 50


def plan(model: dict[str, int], n_saes: int = 1, **changes: Any) -> MemoryPlan:
    job = JobSpec.model_validate({
        "stream": {"synthetic": {"n_features": 8, "d_in": D_IN}, "tokens": 100 * BATCH, "batch": BATCH, "buffer_rows": 4 * BATCH},
        "saes": [
            {"name": f"sae{index}", "hook_name": "hook_synthetic", "architecture": {"kind": "topk", "d_sae": D_SAE, "k": 8}}
            for index in range(n_saes)
        ],
    } | changes)  # fmt: skip
    sites = {sae.name: sae.sites({"hook_synthetic": D_IN}) for sae in job.saes}
    return memory.plan(job, sites, placement(job), 4 * D_IN, model)


def test_states_are_counted_once_for_each_sae_and_the_step_once() -> None:
    one, three = plan({}), plan({}, n_saes=3)
    assert STATE < one.training["SAE and optimizer state"] < 1.01 * STATE
    assert three.training["SAE and optimizer state"] == 3 * one.training["SAE and optimizer state"]
    assert three.training["step"] == one.training["step"]
    assert one.training["buffer"] == 2 * 4 * BATCH * 4 * D_IN


@pytest.mark.parametrize(("second", "bytes_a_weight"), [("float32", 10), ("factored", 6), ("int8", 7 + 4 / 256)])
def test_what_the_optimiser_remembers_is_counted_as_it_is_kept(second: str, bytes_a_weight: float) -> None:
    sae = {
        "name": "sae0", "hook_name": "hook_synthetic", "architecture": {"kind": "topk", "d_sae": D_SAE, "k": 8},
        "optimizer": {"first_moment": "bfloat16", "second_moment": second},
    }  # fmt: skip
    found = plan({}, saes=[sae]).training["SAE and optimizer state"]
    assert found == pytest.approx(bytes_a_weight * 2 * D_IN * D_SAE, rel=0.02)


def test_the_rows_that_a_threshold_is_set_on_are_there_at_once() -> None:
    stream = {"synthetic": {"n_features": 8, "d_in": D_IN}, "tokens": 100 * BATCH, "batch": BATCH, "buffer_rows": 80 * BATCH}

    def step(kind: str) -> int:
        sae = {"name": "sae0", "hook_name": "hook_synthetic", "architecture": {"kind": kind, "d_sae": 64, "k": 8}}
        return plan({}, stream=stream, saes=[sae]).training["step"]

    assert step("topk") < 4 * D_IN * SAMPLE_ROWS < step("batchtopk")


def test_the_rows_of_a_model_are_no_part_of_what_jax_holds() -> None:
    found = plan({"model": 7, "logits": 5})
    assert found.model == {"model": 7, "logits": 5, "buffer": 2 * 4 * BATCH * 4 * D_IN}
    assert "buffer" not in found.training


def test_an_evaluation_during_training_is_added_to_it() -> None:
    at_the_end, meanwhile = plan({}), plan({}, evaluation={"every_tokens": BATCH})
    assert meanwhile.training == at_the_end.training | at_the_end.evaluation


@pytest.mark.parametrize(
    ("parts", "limits", "param", "words"),
    [
        ({"training": {"SAE and optimizer state": 3 * GIB, "step": 1}}, Limits(2 * GIB, PLENTY), "/saes", "fewer or narrower SAEs"),
        ({"training": {"SAE and optimizer state": 1, "step": 3 * GIB}}, Limits(2 * GIB, PLENTY), "/saes", "stream.batch"),
        ({"evaluation": {"evaluation": 3 * GIB}}, Limits(2 * GIB, PLENTY), "/stream/prompts", "stream.prompts"),
        ({"model": {"model": 3 * GIB, "buffer": 1}}, Limits(PLENTY, 2 * GIB), "/stream/model", "dtype"),
        ({"model": {"model": 1, "buffer": 3 * GIB}}, Limits(PLENTY, 2 * GIB), "/stream", "buffer_bytes"),
        ({"model": {"model": 1, "logits": 3 * GIB}}, Limits(PLENTY, 2 * GIB), "/stream/prompts", "context_size"),
    ],
)  # fmt: skip
def test_what_a_device_cannot_hold_is_refused_with_what_to_reduce(
    parts: dict[str, dict[str, int]], limits: Limits, param: str, words: str
) -> None:
    found = MemoryPlan(**{"training": {"step": 1}, "evaluation": {"evaluation": 1}, "model": {}} | parts, checkpoint=0)
    with pytest.raises(OutOfMemory, match=r"about 3\.0 GiB .* has 2\.0 GiB") as caught:
        found.check(limits)
    assert caught.value.param == param
    assert words in caught.value.hint
    assert found.check(Limits(PLENTY, PLENTY)) is None


def test_a_machine_without_a_device_is_warned_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = MemoryPlan({"SAE and optimizer state": 3 * GIB}, {"evaluation": 1}, {"model": GIB}, checkpoint=GIB)
    monkeypatch.setattr(memory, "host_memory", lambda: 4 * GIB)
    assert "needs about 5.0 GiB, and this machine has 4.0 GiB; SAE and optimizer state takes the most." in str(found.check(None))
    monkeypatch.setattr(memory, "host_memory", lambda: 5 * GIB)
    assert found.check(None) is None


def test_states_that_one_call_steps_are_there_twice() -> None:
    def found(n_saes: int) -> MemoryPlan:
        architecture = {"kind": "topk", "d_sae": 32, "k": 8}
        saes = [{"name": f"sae{index}", "hook_name": "hook_synthetic", "architecture": architecture} for index in range(n_saes)]
        return plan({}, saes=saes)

    one, three = found(1).training, found(3).training
    assert three["step"] - one["step"] == 3 * one["SAE and optimizer state"]
