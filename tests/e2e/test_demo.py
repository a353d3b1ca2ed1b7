"""`sae-service demo`, whole: what a new user runs first, and the quality that the service promises for it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.demo_figures import DEMO_FIGURES, are_the_demos

CLI = [sys.executable, "-c", "from sae_service.cli import app; app()"]
LIMIT_S = 8 * 60


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("demo")
    began = time.monotonic()
    ended = subprocess.run([*CLI, "demo"], cwd=folder, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert time.monotonic() - began < LIMIT_S
    return folder / "demo_output", ended.stdout


@pytest.mark.parametrize("name", list(DEMO_FIGURES))
def test_each_sae_is_good_on_held_out_text(demo: tuple[Path, str], name: str) -> None:
    measured = json.loads((demo[0] / name / "metrics.json").read_text())
    assert measured["l0"] <= 40
    assert measured["fvu"] <= 0.10
    assert measured["ce_loss_recovered"] >= 0.96
    assert measured["dead_share"] <= 0.1
    are_the_demos(name, measured)
    assert (demo[0] / name / "cfg.json").is_file()
    assert (demo[0] / name / "sae_weights.safetensors").is_file()


def test_the_table_and_the_picture_are_there(demo: tuple[Path, str]) -> None:
    output, printed = demo
    for word in ("standard", "gated", "jumprelu", "ce_loss_recovered", "tokens_per_s", "pareto.png"):
        assert word in printed
    assert (output / "pareto.png").read_bytes().startswith(b"\x89PNG")
