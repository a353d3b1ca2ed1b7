"""The README's code runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_first_example_trains_an_sae(tmp_path: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)[0]
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    folder = next((tmp_path / "demo_output").glob("jobs/first/step-*/saes/gated_512/metrics.json")).parent
    assert {path.name for path in folder.iterdir()} == {"cfg.json", "sae_weights.safetensors", "metrics.json", "provenance.json"}


def test_every_place_that_the_readme_names_exists() -> None:
    places = re.findall(r"^\| `([^`]+)`", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert places
    assert all((ROOT / place).exists() for place in places)
