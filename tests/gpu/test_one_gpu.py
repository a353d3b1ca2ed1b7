"""The demo's job on one GPU, with torch and JAX sharing its memory by plan."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sae_service.settings import Settings, child_environment

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "one_gpu.py"
ON_A_CPU = {
    "standard": {"l0": 38.0, "fvu": 0.090, "ce_loss_recovered": 0.972},
    "gated": {"l0": 38.2, "fvu": 0.052, "ce_loss_recovered": 0.989},
    "jumprelu": {"l0": 34.1, "fvu": 0.049, "ce_loss_recovered": 0.991},
}
"""What `make demo` measures on two CPU cores."""


@pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="no NVIDIA GPU on this machine")
def test_the_demos_job_reaches_the_same_figures_within_the_planned_memory(tmp_path: Path) -> None:
    settings = Settings()
    environment = child_environment(settings, device=None)
    environment.pop("JAX_PLATFORMS", None)
    command = [sys.executable, str(SCRIPT), "--json", str(tmp_path / "figures.json")]
    subprocess.run(command, check=True, env=environment)
    found = json.loads((tmp_path / "figures.json").read_text())
    for name, expected in ON_A_CPU.items():
        assert found["figures"][name]["l0"] == pytest.approx(expected["l0"], rel=0.1)
        assert found["figures"][name]["fvu"] == pytest.approx(expected["fvu"], rel=0.1)
        assert found["figures"][name]["ce_loss_recovered"] == pytest.approx(expected["ce_loss_recovered"], abs=0.005)
    share = settings.gpu_memory_fraction
    assert found["jax_reserved_gib"] <= (share + 0.02) * found["device_gib"]
    assert found["torch_peak_gib"] <= (1 - share) * found["device_gib"]
