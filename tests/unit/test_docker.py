"""The files in docker/ name what exists."""

import re
import subprocess
from pathlib import Path

import yaml

from sae_service.settings import PREFIX, Settings
from workers.ending import WORKER_STOP_S

DOCKER = Path(__file__).parents[2] / "docker"


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


def test_the_images_copy_what_exists_and_start_modules_that_exist() -> None:
    for file in DOCKER.glob("*.Dockerfile"):
        text = file.read_text()
        for sources in re.findall(r"^COPY (.+) \S+$", text, flags=re.MULTILINE):
            assert all((DOCKER.parent / source).exists() for source in sources.split())
        (module,) = re.findall(r'^CMD \["python", "-m", "(\w+)"', text, flags=re.MULTILINE)
        assert (DOCKER.parent / module / "__main__.py").is_file()
