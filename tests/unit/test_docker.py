"""The files in docker/ name what exists."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

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


def test_the_cluster_files_can_be_read_and_leave_time_to_save() -> None:
    api, _, worker = yaml.safe_load_all((DOCKER / "kubernetes.yaml").read_text())
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
        for sources in re.findall(r"^COPY (.+) \S+$", text, flags=re.MULTILINE):
            assert all((DOCKER.parent / source).exists() for source in sources.split())
        (module,) = re.findall(r'^CMD \["python", "-m", "(\w+)"', text, flags=re.MULTILINE)
        assert (DOCKER.parent / module / "__main__.py").is_file()
