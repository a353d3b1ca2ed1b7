"""A job over the devices of several hosts, each a process of its own, is the job of one process with as many devices."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sae_service.storage.objects import Storage
from tests.host_of_job import PREFIX
from tests.published import published
from tests.service import free_port
from tests.small_jobs import small_job
from tests.split_jobs import difference
from tests.split_jobs import spec as split_spec

PATIENCE_S = 600


class Hosts:
    """Runs jobs in folders below one, over some hosts with some devices each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run(
        self, name: str, n_hosts: int, n_devices: int, *specs: dict[str, Any], begun: str | None = None, stops: int | None = None
    ) -> list[dict[str, Any]]:
        """The news of each host.

        Args:
            specs: of each host, or one of all.
            begun: the name of a job from which this one goes on.
            stops: the host that asks to stop.
        """
        folder = self._folder / name
        if begun is not None:
            shutil.copytree(self._folder / begun, folder)
        folder.mkdir(exist_ok=True)
        flags = f"--xla_force_host_platform_device_count={n_devices} --xla_backend_optimization_level=0"
        compiled = {"JAX_COMPILATION_CACHE_DIR": str(self._folder / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        coordinator = f"localhost:{free_port()}"
        processes = []
        for index in range(n_hosts):
            spec = json.dumps(specs[index % len(specs)])
            arguments = [str(folder), coordinator, str(n_hosts), str(index), spec, "yes" if index == stops else "no"]
            with (folder / f"log-{index}").open("w") as log:
                command = [sys.executable, "-m", "tests.host_of_job", *arguments]
                environment = os.environ | compiled | {"XLA_FLAGS": flags}
                processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        for index, process in enumerate(processes):
            assert process.wait(PATIENCE_S) == 0, (folder / f"log-{index}").read_text()[-3000:]
        return [json.loads((folder / f"news-{index}.json").read_text()) for index in range(n_hosts)]

    def files(self, name: str) -> dict[str, bytes]:
        """Those of the final checkpoint."""
        key = json.loads((self._folder / name / "news-0.json").read_text())["key"]
        return published(Storage((self._folder / name).as_uri()), key)

    def checkpoints(self, name: str) -> list[Path]:
        return sorted((self._folder / name / PREFIX).glob("*"))


def spec(is_split: bool, **changes: Any) -> dict[str, Any]:
    """The job of `split_jobs`, over eight devices, measured on the way, with one SAE more that is not split."""
    found = split_spec(is_split).model_dump(mode="json", exclude_unset=True)
    found["evaluation"] = {"tokens": 512, "every_tokens": found["stream"]["tokens"] // 2}
    found["saes"].append(found["saes"][0] | {"name": "whole", "architecture": {"kind": "standard", "d_sae": 32}, "shard": "none"})
    return found | changes


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Hosts:
    """Hosts on which jobs have run: one over two hosts, one over two that the second asked to stop, and the same elsewhere."""
    return Hosts(tmp_path_factory.mktemp("hosts"))


@pytest.fixture(scope="module")
def news(hosts: Hosts) -> list[dict[str, Any]]:
    return hosts.run("two", 2, 4, spec(True))


ONE_DEVICE = pytest.param(1, False, marks=pytest.mark.slow, id="one_device")


@pytest.mark.parametrize(("n_devices", "is_split"), [pytest.param(8, True, id="eight_devices"), ONE_DEVICE])
def test_its_weights_and_state_are_those_of_one_host(
    hosts: Hosts, news: list[dict[str, Any]], n_devices: int, is_split: bool
) -> None:
    hosts.run(f"one_{n_devices}", 1, n_devices, spec(is_split))
    assert difference(hosts.files("two"), hosts.files(f"one_{n_devices}")) < 1e-6


def test_one_host_publishes_and_reports(hosts: Hosts, news: list[dict[str, Any]]) -> None:
    leader, follower = news
    assert leader["reported"] == len(hosts.checkpoints("two")) > 1
    assert follower["reported"] == 0


def test_stopped_by_any_host_it_goes_on_to_the_same_bytes_or_on_one_device_to_the_same_weights(
    hosts: Hosts, news: list[dict[str, Any]]
) -> None:
    stopped = hosts.run("stopped", 2, 4, spec(True), stops=1)
    assert [found["key"] for found in stopped] == [None, None]
    hosts.run("resumed", 2, 4, spec(True), begun="stopped")
    ours, theirs = hosts.files("two"), hosts.files("resumed")
    assert [path for path in ours if path.endswith("safetensors") and ours[path] != theirs[path]] == []
    hosts.run("gathered", 1, 1, spec(False), begun="stopped")
    assert difference(ours, hosts.files("gathered")) < 1e-6


def test_each_host_looks_at_latents_and_the_first_writes_what_it_has_seen(hosts: Hosts) -> None:
    part = {"tokens": 4096, "best": 3, "per_quantile": 1}
    job = small_job(tokens=8 * 256) | {"gpus": 2, "latents": part, "checkpoints": {"every_tokens": 1024, "keep": 9}}
    job["saes"] = [job["saes"][0] | {"shard": "latents"}]
    leader, follower = hosts.run("looks", 2, 1, job)
    assert (leader["error"], follower["error"], follower["reported"]) == (None, None, 0)
    assert leader["reported"] == len(hosts.checkpoints("looks")) > 4, "of training, of the look, and the final one"
    assert json.loads(hosts.files("looks")["saes/standard_256/latents.json"])["n_prompts"] == 4096 // 128


def test_hosts_that_read_other_rows_are_told_so(hosts: Hosts) -> None:
    other = spec(True)
    other["stream"] = other["stream"] | {"seed": 1}
    for found in hosts.run("other_rows", 2, 4, spec(True), other):
        assert "host 1 has read other activations at hook_synthetic than host 0" in found["error"]
    assert hosts.checkpoints("other_rows") == []


def test_what_is_wrong_on_another_host_is_told_by_the_first(hosts: Hosts) -> None:
    few = spec(True, gpus=4)
    leader, follower = hosts.run("few", 2, 4, spec(True), few)
    assert "the job is trained on 4 devices of 2 hosts, and host 0 has 4, host 1 has 4" in follower["error"]
    assert "host 1 of 2: WorkerCrashed" in leader["error"], "an error that a worker tries again"


def test_of_an_sae_that_is_not_split_it_is_said_that_each_host_trains_it(news: list[dict[str, Any]]) -> None:
    (warning,) = news[0]["warnings"]
    assert warning.startswith("shard: whole is not split, so each of the 2 hosts trains it for itself")


def test_an_array_is_gathered_exactly_in_pieces_along_any_axis() -> None:
    code = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from sae_service.hosts import gathered
from sae_service.training.placement import mesh_of
for dtype in ("float32", "bfloat16", "int8", "int32", "bool"):
    for axis, shape in ((0, (40, 3)), (1, (3, 40)), (0, (40,)), (0, (8, 2))):
        array = jax.random.randint(jax.random.key(1), shape, -9, 9).astype(dtype)
        split = jax.device_put(array, NamedSharding(mesh_of(jax.devices()), PartitionSpec(*[None] * axis, "devices")))
        for piece_bytes in (1, 2 * array.nbytes // 5, 1 << 20):
            assert np.array_equal(gathered(split, piece_bytes), np.asarray(array)), (dtype, axis, shape, piece_bytes)
"""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | flags)
