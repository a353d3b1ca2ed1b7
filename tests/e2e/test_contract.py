"""The REST interface keeps what its OpenAPI document says: schemathesis tries each operation (make contract)."""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api_process import started
from tests.postgres import Postgres

ROOT = Path(__file__).parents[2]
SCHEMATHESIS = ROOT / ".venv-contract" / "bin" / "st"
EXAMPLES = os.environ.get("CONTRACT_EXAMPLES", "40")
KEY = "contract"
pytestmark = pytest.mark.slow
# What an OpenAPI document cannot say: rules across fields, and whether files are there.
EXPLAINED = ("positive_data_acceptance",)
# A stream lasts as long as its job waits; tests of their own follow some.
CONFIG = """
[[operations]]
include-path = "/v1/jobs/{job_id}/events"
[operations.parameters]
"query.stream" = false

# Each of 64 SAEs has some twenty fields: the tool does not come to the end of all their combinations.
[[operations]]
include-path = "/v1/jobs"
include-method = "POST"
[operations.phases.coverage]
enabled = false
"""


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.close()


def job() -> dict[str, Any]:
    demo = ROOT / "sae_service" / "demo"
    return {
        "stream": {"model": {"name": str(demo / "model")}, "dataset": {"path": str(demo / "text")}, "tokens": 4096, "batch": 256},
        "saes": [{"hook_name": "blocks.1.hook_resid_post", "architecture": {"kind": "topk", "d_sae": 256}}],
    }


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_no_operation_breaks_what_the_document_says(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if not SCHEMATHESIS.exists():
        pytest.skip("schemathesis is not here (make contract)")
    settings, headers = {}, {}
    if kind == "postgresql":
        settings["SAE_SERVICE_DATABASE_URL"] = request.getfixturevalue("postgres").url
        settings["SAE_SERVICE_API_KEY_SHA256"] = json.dumps([hashlib.sha256(KEY.encode()).hexdigest()])
        headers["Authorization"] = f"Bearer {KEY}"
    process, url = started(tmp_path, **settings)
    try:
        for n in range(3):
            httpx.post(f"{url}/v1/jobs", json=job() | {"metadata": {"n": str(n)}}, headers=headers, timeout=60).raise_for_status()
        command = [str(SCHEMATHESIS), "run", f"{url}/openapi.json", "--checks", "all", "--max-examples", EXAMPLES]
        command += ["--exclude-checks", ",".join(EXPLAINED), "--continue-on-failure", "--seed", "1", "--request-timeout", "30"]
        command += [word for name, value in headers.items() for word in ("-H", f"{name}: {value}")]
        (tmp_path / "schemathesis.toml").write_text(CONFIG)
        found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    finally:
        process.terminate()
        process.wait()
    assert found.returncode == 0, found.stdout[-20_000:]
