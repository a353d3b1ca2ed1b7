"""How many programs a job compiles, and that the next job of its kind compiles none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import DEMO

MOST_PROGRAMS = 20
SCRIPT = """
import json, sys
from pathlib import Path
import jax.monitoring
from sae_service import pipeline
from sae_service.spec import JobSpec
from sae_service.storage.objects import Storage
from tests.recorder import Recorder

seconds, events = [], []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name.rsplit("/")[-1]))
jax.monitoring.register_event_duration_secs_listener(
    lambda name, found, **_: seconds.append((name.rsplit("/")[-1], found)) if name.startswith("/jax/core/compile/") else None
)
pipeline.run(JobSpec.model_validate_json(sys.argv[1]), Storage(Path(sys.argv[2]).as_uri()), "jobs/test", Recorder())
print(json.dumps({
    "programs": [name for name, _ in seconds].count("backend_compile_duration"),
    "seconds": sum(found for _, found in seconds),
    "found": events.count("cache_hits"),
}))
"""
JOB = {
    "stream": {
        "model": {"name": str(DEMO / "model")}, "dataset": {"path": str(DEMO / "text"), "held_out_split": "test"},
        "tokens": 20 * 512, "batch": 512, "buffer_rows": 8 * 512,
    },
    "saes": [{"hook_name": "blocks.1.hook_resid_post", "architecture": {"kind": "jumprelu", "d_sae": 512}}],
    "evaluation": {"tokens": 4096},
}  # fmt: skip


def compiled(cache: Path, folder: Path) -> dict[str, float]:
    """What the job has compiled in a process of its own."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }  # fmt: skip
    command = [sys.executable, "-c", SCRIPT, json.dumps(JOB), str(folder)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    cache = tmp_path_factory.mktemp("cache")
    return [compiled(cache, tmp_path_factory.mktemp("job")) for _ in range(2)]


def test_a_job_with_one_sae_compiles_few_programs(twice: list[dict[str, float]]) -> None:
    assert 0 < twice[0]["programs"] <= MOST_PROGRAMS


def test_the_next_job_of_its_kind_finds_them_all(twice: list[dict[str, float]]) -> None:
    first, second = twice
    assert first["found"] == 0
    assert second["found"] == second["programs"] == first["programs"]
    assert second["seconds"] < first["seconds"] / 2
