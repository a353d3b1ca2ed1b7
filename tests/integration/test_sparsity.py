"""The numbers that are to set how many latents fire do so."""

from typing import Any

import pytest

from sae_service import pipeline
from sae_service.spec import JobSpec
from sae_service.storage.objects import Storage
from tests.recorder import Recorder

TARGETS = (3.0, 6.0)
# A coefficient for each kind that has one, to be compared with ten times as much.
COEFFICIENTS: dict[str, dict[str, Any]] = {
    "standard": {"l1_coefficient": 0.03},
    "standard_tied": {"l1_coefficient": 0.03},
    "gated": {"l1_coefficient": 0.05},
    "jumprelu": {"l0_coefficient": 0.003, "bandwidth": 0.1, "initial_threshold": 0.1},
    "jumprelu_tanh": {"sparsity_coefficient": 0.01, "bandwidth": 0.3, "initial_threshold": 0.03},
    "p_annealing": {"lp_coefficient": 0.01},
}


def measured(folder: Any, architectures: dict[str, dict[str, Any]], n_steps: int) -> dict[str, float]:
    """The L0 on held-out rows of each SAE, all trained on one stream of 64 features in 32 dimensions."""
    optimizer = {"lr": 3e-3, "beta1": 0.9, "lr_warm_up": 0.05, "lr_decay": 0.3, "sparsity_warm_up": 0.1}
    job = JobSpec.model_validate({
        "stream": {"synthetic": {"n_features": 64, "d_in": 32}, "tokens": n_steps * 256, "batch": 256},
        "saes": [
            {
                "name": name, "hook_name": "hook_synthetic", "architecture": {"d_sae": 64, **architecture},
                "optimizer": optimizer, "normalization": "unit_mean_square",
            }
            for name, architecture in architectures.items()
        ],
        "log_every": n_steps, "evaluation": {"tokens": 8192}, "checkpoints": {"every_tokens": n_steps * 256},
    })  # fmt: skip
    final = pipeline.run(job, Storage(folder.as_uri()), "job", Recorder())
    assert final is not None
    return {name: final.metrics[name]["l0"] for name in architectures}


def targeted(target: float, **changes: Any) -> dict[str, Any]:
    numbers = {"bandwidth": 0.1, "initial_threshold": 0.1}
    return {"kind": "jumprelu", "target_l0": target, **numbers, **changes}


def test_a_target_l0_is_reached_within_a_tenth(tmp_path: Any) -> None:
    wanted = {f"target-{target}": targeted(target) for target in TARGETS}
    wanted["rows"] = targeted(3.0, target_each_row=True)
    found = measured(tmp_path, wanted, 1200)
    for target in TARGETS:
        assert found[f"target-{target}"] == pytest.approx(target, rel=0.1)
    assert found["rows"] == pytest.approx(3.0, rel=0.1)


@pytest.mark.slow
def test_ten_times_the_coefficient_makes_fewer_latents_fire(tmp_path: Any) -> None:
    architectures: dict[str, dict[str, Any]] = {}
    for kind, numbers in COEFFICIENTS.items():
        coefficient = next(iter(numbers))
        architectures[f"{kind}-weak"] = {"kind": kind, **numbers}
        architectures[f"{kind}-strong"] = {"kind": kind, **numbers, coefficient: 10 * numbers[coefficient]}
    found = measured(tmp_path, architectures, 400)
    for kind in COEFFICIENTS:
        assert 0 < found[f"{kind}-strong"] < 0.7 * found[f"{kind}-weak"]
