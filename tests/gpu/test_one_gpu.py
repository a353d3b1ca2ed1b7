"""The device's ceilings, our shares of them, and the demo's job on one GPU, with torch and JAX sharing its memory by plan."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sae_service.settings import Settings, child_environment
from tests.demo_figures import DEMO_FIGURES, are_the_demos

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="no NVIDIA GPU on this machine")
def test_the_demos_job_reaches_the_same_figures_within_the_planned_memory(tmp_path: Path) -> None:
    settings = Settings()
    environment = child_environment(settings, device=None)
    environment.pop("JAX_PLATFORMS", None)
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--output", str(tmp_path)]
    subprocess.run(command, check=True, env=environment, cwd=ROOT)
    found = json.loads((tmp_path / "gpu.json").read_text())["demo"]
    for name in DEMO_FIGURES:
        are_the_demos(name, found["figures"][name])
    share = settings.gpu_memory_fraction
    assert found["jax_reserved_gib"] <= (share + 0.02) * found["device_gib"]
    assert found["torch_peak_gib"] <= (1 - share) * found["device_gib"]
