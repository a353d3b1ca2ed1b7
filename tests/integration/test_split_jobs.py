"""A job whose SAEs are split over eight devices: its checkpoints, and its figures, are those of a job on one."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `split_jobs` finds."""
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    ended = subprocess.run(
        [sys.executable, "-m", "tests.split_jobs", str(tmp_path_factory.mktemp("jobs"))],
        capture_output=True, text=True, env=os.environ | {"XLA_FLAGS": flags},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def test_it_runs_to_its_end_without_a_warning(found: dict[str, Any]) -> None:
    assert found["warnings"] == []


def test_its_checkpoint_goes_on_on_one_device_and_back_to_the_same_weights(found: dict[str, Any]) -> None:
    assert found["on_one"] < 1e-5
    assert found["on_eight_again"] < 1e-5


def test_resumed_on_as_many_devices_it_ends_with_the_same_bytes(found: dict[str, Any]) -> None:
    assert found["resumed_bytes"] == []


def test_its_held_out_figures_are_those_of_one_device(found: dict[str, Any]) -> None:
    split, on_one = found["fvu"]
    assert split == pytest.approx(on_one, rel=1e-4)


def test_on_text_an_sae_that_is_split_measures_as_a_whole_one_does(found: dict[str, Any]) -> None:
    whole, split = found["held_out"]
    assert split == pytest.approx(whole, rel=1e-4)
