"""What is said of settings that are wrong, and which ones are shown."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sae_service import settings
from sae_service.errors import InvalidSetting
from tests.service import CLI

MODULES = {"api": ("-m", "api"), "worker": ("-m", "workers"), "serve": ("-m", "workers.serve")}


def ended(command: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {f"SAE_SERVICE_{name}": value for name, value in variables.items()}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("name", "value"),
    [("LEASE_S", "-1"), ("STOP_S", "soon"), ("ALLOWED_ROOTS", "/text"), ("API_KEY_SHA256", '["mykey"]'), ("LOG_FORMAT", "xml"),
     ("DATABASE_URL", "garbage"), ("DATABASE_URL", "mysql://u:pw@h/x"), ("DATABASE_URL", "postgresql://u:pw@h:abc/x"),
     ("STORAGE_URL", "./folder"), ("CACHE_URL", "garbage"), ("HOSTS", "0"), ("COORDINATOR", "node7"), ("HOST_INDEX", "1")],
)
def test_a_wrong_setting_is_named_with_what_it_is_in_one_line(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"SAE_SERVICE_{name}", value)
    with pytest.raises(InvalidSetting) as refused:
        settings.load()
    (line,) = str(refused.value).splitlines()
    assert line.startswith(f"SAE_SERVICE_{name}: ")
    assert str(settings.Settings.model_fields[name.lower()].description) in line
    assert "mykey" not in line


@pytest.mark.parametrize("name", MODULES)
def test_no_process_starts_with_a_wrong_setting(name: str, tmp_path: Path) -> None:
    refused = ended([sys.executable, *MODULES[name]], tmp_path, LEASE_S="never")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    assert refused.stderr.startswith(f"{name}: SAE_SERVICE_LEASE_S: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [("DATABASE_URL", "postgresql://u:secret@127.0.0.1:1/sae"), ("STORAGE_URL", "ftp://host/folder"), ("DATA_DIR", "/dev/null/x")],
)
def test_an_api_that_does_not_reach_what_it_needs_says_so_in_one_line(name: str, value: str, tmp_path: Path) -> None:
    refused = ended([sys.executable, "-m", "api"], tmp_path, **{name: value})
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    assert refused.stderr.startswith("api: ")
    assert "secret" not in refused.stderr


def test_several_hosts_need_a_place_to_meet_and_slurm_may_say_which_one_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert settings.load().resolved_host_index() == 0, "one alone is the first, whatever else Slurm runs"
    monkeypatch.setenv("SAE_SERVICE_HOSTS", "4")
    with pytest.raises(InvalidSetting, match="SAE_SERVICE_COORDINATOR: several hosts need one"):
        settings.load()
    monkeypatch.setenv("SAE_SERVICE_COORDINATOR", "node7:8476")
    assert settings.load().resolved_host_index() == 3
    monkeypatch.setenv("SLURM_PROCID", "4")
    with pytest.raises(InvalidSetting, match=r"SLURM_PROCID is 4, which must be less than SAE_SERVICE_HOSTS \(4\)"):
        settings.load().resolved_host_index()
    monkeypatch.setenv("SAE_SERVICE_HOST_INDEX", "0")
    assert settings.load().resolved_host_index() == 0


def test_a_variable_that_is_no_setting_is_named_with_the_nearest_that_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAE_SERVICE_LEASE", "30")
    monkeypatch.setenv("SAE_SERVICE_API_KEY", "a client's")
    assert settings.unknown_variables() == ["SAE_SERVICE_LEASE is no setting and is ignored. Did you mean SAE_SERVICE_LEASE_S?"]


def test_the_settings_in_force_are_shown_without_passwords_and_keys(tmp_path: Path) -> None:
    url, digest = "postgresql://sae:p:@/ss@host/sae?password=hidden", "a" * 64
    shown = ended([*CLI, "config"], tmp_path, DATABASE_URL=url, API_KEY_SHA256=json.dumps([digest]), STOP_S="9").stdout
    assert 'SAE_SERVICE_DATABASE_URL="postgresql://sae:***@host/sae?password=***"' in shown
    assert "SAE_SERVICE_STOP_S=9\n" in shown
    assert "SAE_SERVICE_LEASE_S=60.0  (default)\n" in shown
    assert digest not in shown
