"""What each process imports: nothing that it does not need, and nothing slow in front of a user."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("sae_service.client", ("torch", "jax", "sqlalchemy")),
        ("sae_service.cli", ("torch", "jax", "sqlalchemy")),
        ("workers.__main__", ("torch", "jax")),
        ("api.__main__", ("torch", "transformer_lens")),
    ],
)
def test_what_a_process_does_not_need_it_does_not_import(module: str, forbidden: tuple[str, ...]) -> None:
    code = f"import sys, {module}; sys.exit(','.join({set(forbidden)!r} & set(sys.modules)) or None)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_creating_a_job_imports_no_torch(tmp_path: Path, spec: dict[str, Any]) -> None:
    code = """
import json, sys
from pathlib import Path
from fastapi.testclient import TestClient
from api.app import create_app
from sae_service.settings import Settings
with TestClient(create_app(Settings(data_dir=Path(sys.argv[1]))), "http://localhost") as api:
    assert api.post("/v1/jobs", content=sys.argv[2], headers={"Content-Type": "application/json"}).status_code == 201
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path), json.dumps(spec)], check=True, cwd=ROOT)


@pytest.mark.parametrize("module", ["sae_service.client", "sae_service.cli"])
def test_what_a_user_holds_is_imported_in_half_a_second(module: str) -> None:
    code = f"import time; start = time.process_time(); import {module}; print(time.process_time() - start)"
    seconds = [float(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT)) for _ in range(5)]
    assert min(seconds) < 0.5
