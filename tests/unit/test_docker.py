"""The files in docker/ name what exists."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import sae_service
from sae_service.settings import PREFIX, Settings
from workers.ending import WORKER_EXTRA_S

DOCKER = Path(__file__).parents[2] / "docker"
WORKER_STOP_S = Settings().stop_s + WORKER_EXTRA_S


def test_the_compose_file_builds_from_files_that_exist_and_sets_settings_that_exist() -> None:
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    assert set(services) == {"database", "api", "worker"}
    for name in ("api", "worker"):
        assert (DOCKER / services[name]["build"]["context"] / services[name]["build"]["dockerfile"]).is_file()
        for variable in services[name]["environment"]:
            assert variable.removeprefix(PREFIX).lower() in Settings.model_fields


def pods() -> list[dict[str, Any]]:
    """What starts pods: the API, a worker, a worker of several hosts."""
    found = yaml.safe_load_all((DOCKER / "kubernetes.yaml").read_text())
    return [item for item in found if item["kind"] in ("Deployment", "StatefulSet")]


def test_pods_of_one_worker_of_several_hosts_agree_on_who_is_who() -> None:
    found = list(yaml.safe_load_all((DOCKER / "kubernetes.yaml").read_text()))
    (several,) = (item for item in found if item["kind"] == "StatefulSet")
    name, service = several["metadata"]["name"], several["spec"]["serviceName"]
    container = several["spec"]["template"]["spec"]["containers"][0]
    given = {variable["name"].removeprefix(PREFIX).lower(): variable.get("value") for variable in container["env"]}
    settings = Settings(hosts=int(given["hosts"]), coordinator=given["coordinator"])
    assert settings.hosts == several["spec"]["replicas"]
    assert several["spec"]["podManagementPolicy"] == "Parallel", "none of them is ready before the others are there"
    host, port = str(settings.coordinator).split(":")
    assert host == f"{name}-0.{service}"
    assert int(port) in [found["containerPort"] for found in container["ports"]]
    (headless,) = (item for item in found if item["kind"] == "Service" and item["metadata"]["name"] == service)
    assert (headless["spec"]["clusterIP"], headless["spec"]["publishNotReadyAddresses"]) == ("None", True)
    (policy,) = (item for item in found if item["kind"] == "NetworkPolicy")
    labels = several["spec"]["template"]["metadata"]["labels"]
    assert policy["spec"]["podSelector"]["matchLabels"] == headless["spec"]["selector"] == labels


def test_the_cluster_files_can_be_read_and_leave_time_to_save() -> None:
    api, *workers = pods()
    for worker in workers:
        assert worker["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > WORKER_STOP_S
    assert api["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["httpGet"]["path"] == "/readyz"
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["worker"]["stop_grace_period"]
    assert int(compose.removesuffix("s")) > WORKER_STOP_S
    script = (DOCKER / "slurm.sh").read_text()
    assert int(re.findall(r"--signal=TERM@(\d+)", script)[0]) > WORKER_STOP_S
    subprocess.run(["bash", "-n", DOCKER / "slurm.sh"], check=True)


@pytest.mark.parametrize(
    ("array", "exit_status", "state", "queued_again"),
    [
        ({}, 0, "RUNNING", "requeue 12"),
        ({"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "0"}, 0, "RUNNING", "requeue 12_0"),
        ({}, 0, "COMPLETING", ""),
        ({}, 1, "RUNNING", ""),
    ],
    ids=["time_is_up", "time_is_up_in_an_array", "cancelled", "worker_failed"],
)
def test_a_slurm_job_whose_worker_was_stopped_queues_itself_again_unless_it_is_cancelled(
    tmp_path: Path, array: dict[str, str], exit_status: int, state: str, queued_again: str
) -> None:
    ended = run_slurm_script(tmp_path, {"srun": f"exit {exit_status}", "squeue": f"echo {state}"}, array)
    assert ended.returncode == exit_status
    asked = tmp_path / "scontrol.asked"
    assert (asked.read_text().strip() if asked.exists() else "") == queued_again


def test_a_slurm_worker_has_all_cpus_of_its_job_a_folder_of_its_user_and_a_log_of_all_its_runs(tmp_path: Path) -> None:
    run_slurm_script(tmp_path, {"srun": "", "squeue": ""}, {"SLURM_CPUS_PER_TASK": "8", "TMPDIR": "/scratch"})
    asked = (tmp_path / "srun.asked").read_text()
    assert asked.startswith("--cpus-per-task=8 sae-service worker ")
    assert f"--data-dir /scratch/sae-worker-{os.getuid()} " in asked
    assert "\n#SBATCH --open-mode=append\n" in (DOCKER / "slurm.sh").read_text()


def test_on_several_nodes_slurm_starts_one_worker_each_and_all_know_the_first(tmp_path: Path) -> None:
    nodes = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_GPUS_ON_NODE": "4"}
    srun = f"echo $SAE_SERVICE_HOSTS $SAE_SERVICE_COORDINATOR > {tmp_path}/told"
    run_slurm_script(tmp_path, {"srun": srun, "squeue": "", "scontrol": "echo node7; echo node8"}, nodes)
    assert (tmp_path / "told").read_text() == "2 node7:8476\n"
    asked = (tmp_path / "srun.asked").read_text()
    assert asked.startswith("--ntasks-per-node=1 --kill-on-bad-exit=1 --cpus-per-task=1 sae-service worker ")
    assert asked.endswith(" --device 0,1,2,3\n")


def run_slurm_script(folder: Path, programs: dict[str, str], variables: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    """Runs it with `programs` in Slurm's place; what NAME is asked is in `folder`/NAME.asked."""
    for name, program in ({"scontrol": ""} | programs).items():
        (folder / name).write_text(f'#!/bin/sh\necho "$@" > {folder / name}.asked\n{program}\n')
        (folder / name).chmod(0o755)
    settings = {"SAE_SERVICE_DATABASE_URL": "postgresql://host/database", "SAE_SERVICE_STORAGE_URL": "s3://bucket"}
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "12", **settings, **variables}
    return subprocess.run(["bash", DOCKER / "slurm.sh"], env=environment)


def test_the_images_copy_what_exists_and_start_modules_that_exist() -> None:
    for file in DOCKER.glob("*.Dockerfile"):
        text = file.read_text()
        for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", text, flags=re.MULTILINE):
            assert all((DOCKER.parent / source).exists() for source in sources.split())
        (module,) = re.findall(r'^CMD \["python", "-m", "(\w+)"', text, flags=re.MULTILINE)
        assert (DOCKER.parent / module / "__main__.py").is_file()


def test_the_images_have_fixed_versions_before_the_code_and_run_as_nobody_special() -> None:
    for name in ("api", "worker"):
        text = (DOCKER / f"{name}.Dockerfile").read_text()
        (base,) = re.findall(r"^ARG PYTHON=python:(\S+)$", text, flags=re.MULTILINE)
        assert re.match(r"\d+\.\d+\.\d+-", base)
        assert set(re.findall(r"^FROM (\S+)", text, flags=re.MULTILINE)) == {"${PYTHON}"}
        assert text.index(f"--no-deps --require-hashes -r {name}.lock") < text.index("COPY sae_service")
        assert "\nUSER 10001\n" in text


def locked(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)(?:\[\w+\])?==(\S+)", (DOCKER / f"{name}.lock").read_text(), flags=re.MULTILINE))


def test_the_locks_hold_what_the_package_asks_for_and_the_apis_neither_torch_nor_plots() -> None:
    asked = tomllib.loads((DOCKER.parent / "pyproject.toml").read_text())["project"]["dependencies"]
    unused = set(re.findall(r"^([\w-]+);", (DOCKER / "api.overrides.txt").read_text(), flags=re.MULTILINE))
    assert {"torch", "transformer-lens", "matplotlib"} <= unused
    assert unused.isdisjoint(locked("api"))
    for requirement in map(Requirement, asked):
        for name in ("api", "worker"):
            if name == "worker" or requirement.name not in unused:
                assert requirement.specifier.contains(locked(name)[canonicalize_name(requirement.name)]), (name, requirement)


def test_the_api_takes_a_job_without_what_its_image_lacks(tmp_path: Path, spec: dict[str, Any]) -> None:
    unused = re.findall(r"^([\w-]+);", (DOCKER / "api.overrides.txt").read_text(), flags=re.MULTILINE)
    code = """
import json, sys
from importlib.machinery import PathFinder
from pathlib import Path
find, lacking = PathFinder.find_spec, {name.replace("-", "_").removesuffix("_checkpoint") for name in sys.argv[3:]}
PathFinder.find_spec = lambda name, *rest: None if name in lacking else find(name, *rest)
import api.__main__
from fastapi.testclient import TestClient
from sae_service.settings import Settings
app = api.__main__.create_app(Settings(data_dir=Path(sys.argv[1])))
with TestClient(app, base_url="http://localhost") as client:
    made = client.post("/v1/jobs", json=json.loads(sys.argv[2]))
    assert made.status_code == 201, made.text
"""
    command = [sys.executable, "-c", code, str(tmp_path), json.dumps(spec), *unused, "transformers"]
    subprocess.run(command, check=True, cwd=DOCKER.parent)


def test_the_images_are_named_by_the_release_and_only_what_they_need_is_sent_to_the_builder() -> None:
    for file in ("compose.yaml", "kubernetes.yaml", "api.Dockerfile", "worker.Dockerfile"):
        names = re.findall(r"sae-service-(?:api|worker):(\S+?)(?=$|\s)", (DOCKER / file).read_text(), flags=re.MULTILINE)
        assert names, file
        assert set(names) == {sae_service.__version__}
    assert (DOCKER.parent / ".dockerignore").read_text().splitlines()[1] == "*"


def test_the_compose_file_has_no_password_and_is_reached_from_this_machine_only() -> None:
    text = (DOCKER / "compose.yaml").read_text()
    assert set(re.findall(r"\$\{POSTGRES_PASSWORD(..)", text)) == {":?"}
    services = yaml.safe_load(text)["services"]
    assert services["api"]["ports"] == ["127.0.0.1:8000:8000"]
    for name in ("api", "worker"):
        service = services[name]
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert {mount.rsplit(":/")[1].split(":")[0] for mount in service["volumes"]} == {"data", "cache", "models", "text"}
        assert set(json.loads(service["environment"]["SAE_SERVICE_ALLOWED_ROOTS"])) == {"/models", "/text"}


def test_pods_have_no_rights_limits_probes_and_a_budget() -> None:
    found = list(yaml.safe_load_all((DOCKER / "kubernetes.yaml").read_text()))
    budgets = {item["spec"]["selector"]["matchLabels"]["app"] for item in found if item["kind"] == "PodDisruptionBudget"}
    claims = {item["metadata"]["name"] for item in found if item["kind"] == "PersistentVolumeClaim"}
    deployments = pods()
    assert {item["metadata"]["name"] for item in deployments} == budgets
    for deployment in deployments:
        pod = deployment["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert (pod["securityContext"]["runAsNonRoot"], pod["enableServiceLinks"]) == (True, False)
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        assert {"requests", "limits"} <= container["resources"].keys()
        assert "livenessProbe" in container
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        used = {volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume}
        assert used == claims
        for variable in container["env"]:
            assert variable["name"].removeprefix(PREFIX).lower() in Settings.model_fields
