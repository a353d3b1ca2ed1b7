"""Extend, fork, retry, delete and workers as their users run them: the command line, a service, real processes."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.service import CLI, Service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("service"))
    yield service
    service.interrupt()


@pytest.fixture
def quick(tmp_path: Path) -> dict[str, Any]:
    """40 steps on synthetic rows."""
    sae = {
        "name": "a", "hook_name": "hook_synthetic", "optimizer": {"lr": 1e-3, "lr_warm_up": 5},
        "architecture": {"kind": "jumprelu", "d_sae": 32, "target_l0": 4, "l0_coefficient": 1.0, "bandwidth": 0.1},
    }  # fmt: skip
    stream = {"synthetic": {"n_features": 32, "d_in": 16}, "tokens": 40 * 64, "batch": 64, "buffer_rows": 512, "seed": 3}
    return {"stream": stream, "saes": [sae], "checkpoints": {"every_tokens": 640}, "evaluation": {"tokens": 512}, "log_every": 10}


def sae_service(service: Service, *arguments: str) -> str:
    command = [*CLI, *arguments, "--url", service.url]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def test_a_finished_job_is_extended_forked_and_deleted(service: Service, quick: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(quick))
    first = sae_service(service, "submit", str(tmp_path / "job.yaml"))
    sae_service(service, "watch", first)
    assert "synthetic" in sae_service(service, "show", first)

    longer = sae_service(service, "extend", first, "--tokens", str(80 * 64))
    sae_service(service, "watch", longer)
    assert service.client.checkpoints(longer)[0].step == 80
    assert [row.step for row in service.client.metrics(longer)] == [50, 60, 70, 80]
    assert f"{first}, step 40" in sae_service(service, "show", longer)

    middle = service.client.checkpoints(first)[1]
    forked = sae_service(service, "fork", first, "--checkpoint", middle.id, "--set", "a.target_l0=2", "--set", "a.lr=5e-3")
    sae_service(service, "watch", forked)
    spec = service.client.job(forked).spec["saes"][0]
    assert (spec["architecture"]["target_l0"], spec["optimizer"]["lr"]) == (2.0, 5e-3)
    assert service.client.job(forked).status == "succeeded"

    folders = service.data_dir / "storage" / "jobs"
    assert (folders / first).exists()
    sae_service(service, "delete", first, "--yes")
    assert not (folders / first).exists()
    assert first not in sae_service(service, "list")


def test_a_job_that_cannot_end_well_is_tried_again_with_other_numbers(service: Service, quick: dict[str, Any]) -> None:
    quick["saes"][0]["optimizer"] = {"lr": 1e30}
    failed = service.ended(service.client.submit(quick))
    assert failed.error is not None
    assert failed.error.code == "nan_loss"
    again = service.client.job(sae_service(service, "retry", failed.id))
    assert service.ended(again).status == "failed"
    refused = subprocess.run([*CLI, "fork", failed.id, "--set", "a.rate=1", "--url", service.url], capture_output=True, text=True)
    assert (refused.returncode, "--set a.rate: there is no field 'rate'" in refused.stderr) == (2, True)


def test_the_workers_are_listed_with_what_they_do(service: Service, quick: dict[str, Any]) -> None:
    (worker,) = json.loads(sae_service(service, "workers", "--json"))
    assert (worker["queue"], worker["gpus"]) == ("default", 1)
    waiting = service.client.submit(quick | {"queue": "large"})
    assert service.client.job(waiting.id).status_reason == "waiting_for_worker"
    service.client.cancel(waiting.id)
