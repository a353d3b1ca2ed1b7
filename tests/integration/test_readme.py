"""The README's code runs, and what it lists is what there is."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import yaml

from api.app import create_app
from sae_service.architectures import ARCHITECTURES
from sae_service.cli import app
from sae_service.cli.common import EXIT_CODES
from sae_service.demo import show
from sae_service.formats import FORMATS
from sae_service.settings import Settings
from sae_service.spec import InitialSpec, JobSpec
from tests.demo_figures import DEMO_FIGURES

ROOT = Path(__file__).parents[2]


def test_the_first_example_trains_an_sae(tmp_path: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)[0]
    # As it stands but for its length, which says nothing about whether it runs.
    code, shortened = re.subn(r'"tokens": 100_000,', '"tokens": 20_000,', code)
    assert shortened == 1
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    folder = next((tmp_path / "demo_output").glob("jobs/first/step-*/saes/gated_512/metrics.json")).parent
    assert {path.name for path in folder.iterdir()} == {"cfg.json", "sae_weights.safetensors", "metrics.json", "provenance.json"}


def test_every_place_that_the_readme_names_exists() -> None:
    section = (ROOT / "README.md").read_text().split("## Where things are")[1]
    places = re.findall(r"^\| `([^`]+)`", section, flags=re.MULTILINE)
    assert places
    assert [place for place in places if not (ROOT / place).exists()] == []


def test_the_readme_lists_every_architecture_and_every_path_of_the_interface(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \| .* \| .* \| .* \|$", text, flags=re.MULTILINE)) == set(ARCHITECTURES)
    paths = create_app(Settings(data_dir=tmp_path)).openapi()["paths"]
    named = text.replace("{id or name}", "{id}")
    for path in paths:
        assert re.sub(r"{(\w+_id)}", "{id}", path).removesuffix("/{id}") in named, path


def test_the_readme_lists_every_format_with_its_files() -> None:
    text = (ROOT / "README.md").read_text()
    for name, format in FORMATS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        assert set(re.findall(r"`([^`]+)`", row)[1:]) == set(format.files)


def test_the_start_that_the_readme_shows_is_valid() -> None:
    text = (ROOT / "README.md").read_text()
    (shown,) = re.findall(r"^ +(initial: .*)$", text, flags=re.MULTILINE)
    InitialSpec.model_validate(yaml.safe_load(shown)["initial"])


def test_the_commands_of_the_readme_are_known() -> None:
    text = (ROOT / "README.md").read_text()
    assert set(re.findall(r"^    sae-service ([a-z]+)", text, flags=re.MULTILINE)) <= known_commands()


def known_commands() -> set[str]:
    groups = {group.name for group in app.registered_groups}
    return groups | {command.name for command in app.registered_commands if command.name}


def test_the_job_that_the_readme_shows_becomes_a_body_for_curl_as_it_says(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    (shown,) = re.findall(r"```yaml\n(# job.yaml\n.*?)```", text, flags=re.DOTALL)
    (command,) = re.findall(r"^    (python -c .*) < job.yaml > job.json$", text, flags=re.MULTILINE)
    made = subprocess.run([sys.executable, *shlex.split(command)[1:]], input=shown, capture_output=True, text=True, check=True)
    (sae,) = JobSpec.model_validate_json(made.stdout).saes
    assert sae.name == "jumprelu_1024"


def test_the_readme_names_every_command_and_every_exit_code() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    named = set(re.findall(r"sae-service ([a-z]+)|`([a-z]+)[ `]", text))
    assert set(known_commands()) <= {name for names in named for name in names}
    assert all(f" {code} " in text.split("Exit codes:")[1].split(".")[0] for code in (0, *EXIT_CODES.values(), 1, 5))


def test_the_readme_shows_the_demos_figures() -> None:
    text = (ROOT / "README.md").read_text()
    shown = re.findall(r"^\| (\w+)" + r" \| ([\d.]+)" * 5 + r" \|$", text, flags=re.MULTILINE)
    measured = [
        (name, f"{of['l0']:.1f}", *(f"{of[key]:.3f}" for key in ("fvu", "fvu_by_row", "ce_loss_recovered", "dead_share")))
        for name, of in DEMO_FIGURES.items()
    ]
    assert shown == measured
    assert [name for name, *_ in shown] == [sae["name"] for sae in show.spec()["saes"]]
