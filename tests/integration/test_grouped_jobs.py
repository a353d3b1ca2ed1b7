"""A job whose SAEs are stepped by one call: a stop changes no byte, and the grouping nothing but the rounding."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load

from sae_service.spec import JobSpec
from sae_service.training import grouping
from tests.synthetic_jobs import BATCH, job, train

STEPS = 20
OPTIMIZER = {"lr_warm_up": 5, "sparsity_warm_up": 5, "lr_decay": 0}


def spec() -> JobSpec:
    """Eight that choose by k, and a pair each of two kinds, of which one starts latents anew."""
    saes = [
        {"name": f"batchtopk{index}", "architecture": {"kind": "batchtopk", "d_sae": 32, "k": 2 + index / 2}, "seed": index}
        for index in range(8)
    ] + [
        {"name": f"{kind}{index}", "architecture": {"kind": kind, "d_sae": 32, **numbers}, "seed": index}
        for kind, numbers in (("gated", {"resample_at": [7]}), ("jumprelu", {})) for index in range(2)
    ]  # fmt: skip
    common = {"hook_name": "hook_synthetic", "dead_after_tokens": 200}
    found: list[dict[str, Any]] = [
        sae | common | {"optimizer": OPTIMIZER | {"lr": 1e-3 * (1 + index)}} for index, sae in enumerate(saes)
    ]
    return JobSpec.model_validate(job(STEPS, saes=found, checkpoints={"every_tokens": 10 * BATCH, "keep": 9}))


def arrays(files: dict[str, bytes]) -> dict[str, dict[str, np.ndarray[Any, Any]]]:
    return {path: load(content) for path, content in files.items() if path.endswith("safetensors")}


def test_neither_a_stop_nor_the_grouping_changes_what_comes_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, whole = train(tmp_path / "whole", spec())
    (said,) = [message for _, message in recorder.events if message.startswith("Operations on latents: ")]
    assert "Steps: in one call, looped (batchtopk0, batchtopk1," in said
    (half,) = [written.key for written in recorder.checkpoints if written.step == 10]
    _, resumed = train(tmp_path / "whole", spec(), begin_with=half)
    assert [path for path in whole if path.endswith("safetensors") and whole[path] != resumed[path]] == []

    monkeypatch.setattr(grouping, "rule", lambda *given: "alone")
    recorder, one_by_one = train(tmp_path / "alone", spec())
    assert [message for _, message in recorder.events if message.endswith("Steps: one by one.")]
    assert one_by_one.keys() == whole.keys()
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), arrays(one_by_one), arrays(whole))
