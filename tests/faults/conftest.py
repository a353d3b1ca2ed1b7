"""The seed, the history and the jobs of the fault suite."""

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DEMO
from tests.faults import every_path, long_documents
from tests.faults.history import History
from tests.faults.results import KEEP_ALL
from tests.postgres import Postgres


def pytest_report_header() -> str:
    """Says with which seed, how many kills and how many jobs the suite is run."""
    return f"faults: FAULTS_SEED={seed_of_this_run()} FAULTS_KILLS={kills_of_this_run()} FAULTS_JOBS={jobs_of_this_run()}"


def seed_of_this_run() -> int:
    """Every random choice of the suite comes from it."""
    return int(os.environ.get("FAULTS_SEED", "1"))


def kills_of_this_run() -> int:
    """How many kills each of the long runs is to have."""
    return int(os.environ.get("FAULTS_KILLS", "100"))


def jobs_of_this_run() -> int:
    """How many jobs are killed again and again."""
    return int(os.environ.get("FAULTS_JOBS", "20"))


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    """Where a test writes what it does; shown if the test fails."""
    history = History(tmp_path / "history.jsonl", seed_of_this_run())
    yield history
    print(f"history, in {history.path}:\n{history.path.read_text()}")  # noqa: T201


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings of JAX by which a training process need not compile what one before it has compiled: more time for kills."""
    folder = str(tmp_path_factory.mktemp("compiled"))
    limits = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    return {"JAX_COMPILATION_CACHE_DIR": folder, **limits}


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server for one test, which may kill it."""
    server = Postgres()
    yield server
    server.close()


@pytest.fixture
def quick() -> dict[str, Any]:
    """A job on synthetic activations: it starts fast, so that the time goes into faults. 20 checkpoints in 2000 steps."""
    optimizer = {"lr": 1e-3, "lr_warm_up": 0.1, "sparsity_warm_up": 0.2}
    sae = {
        "name": "a", "hook_name": "hook_synthetic", "optimizer": optimizer,
        "architecture": {"kind": "standard", "d_sae": 32, "l1_coefficient": 1.0},
    }  # fmt: skip
    stream = {"synthetic": {"n_features": 32, "d_in": 16}, "tokens": 2000 * 64, "batch": 64, "buffer_rows": 1024, "seed": 3}
    return {
        "stream": stream, "saes": [sae, sae | {"name": "b", "seed": 7}],
        "checkpoints": {"every_tokens": 100 * 64}, "evaluation": {"tokens": 1024}, "log_every": 10,
    }  # fmt: skip


@pytest.fixture
def in_slots(quick: dict[str, Any]) -> dict[str, Any]:
    """A job like the quick one, with one wide SAE: what costs time is to compile. 6 checkpoints in 300 steps."""
    quick["stream"]["tokens"] = 300 * 64
    quick["checkpoints"]["every_tokens"] = 50 * 64
    quick["saes"] = every_path.saes(quick["stream"], "hook_synthetic")[:1]
    return quick


@pytest.fixture
def factored(in_slots: dict[str, Any]) -> dict[str, Any]:
    """The same with the other wide SAE, and long enough to be found at work on a busy machine. 20 checkpoints in 1000 steps."""
    in_slots["stream"]["tokens"] = 1000 * 64
    in_slots["saes"] = every_path.saes(in_slots["stream"], "hook_synthetic")[1:2]
    return in_slots


@pytest.fixture
def long_text(spec: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A job of 25 checkpoints, all but the first few of them in one group of long documents, with an activation cache."""
    spec["stream"]["dataset"]["path"] = str(long_documents.write(tmp_path / "text"))
    spec["stream"] |= {"tokens": 400 * 256, "prompts": 8, "cache": "fill"}
    spec["checkpoints"] = {"every_tokens": 16 * 256, "keep": KEEP_ALL}
    return spec


@pytest.fixture
def variety(quick: dict[str, Any], long_text: dict[str, Any]) -> list[dict[str, Any]]:
    """Jobs that differ, so that state of one that got into another would show."""
    quick["checkpoints"]["keep"] = KEEP_ALL
    other, text = copy.deepcopy(quick), copy.deepcopy(long_text)
    other["stream"]["seed"] = 4
    text["stream"]["dataset"]["path"] = str(DEMO / "text")
    text["stream"]["tokens"] = 120 * 256
    text["checkpoints"]["every_tokens"] = 12 * 256
    for job in (other, text):
        job["saes"] = every_path.saes(job["stream"], job["saes"][0]["hook_name"])
    return [quick, text, other, long_text]


@pytest.fixture
def demo_text(spec: dict[str, Any]) -> dict[str, Any]:
    """On the demo's model and text, with an activation cache: 14 checkpoints and the last, five for each group of documents."""
    spec["stream"] |= {"tokens": 300_000, "batch": 1024, "buffer_rows": 32_768, "prompts": 16, "cache": "fill"}
    spec["saes"] = every_path.saes(spec["stream"], spec["saes"][0]["hook_name"])
    spec["checkpoints"] = {"every_tokens": 20_480, "keep": KEEP_ALL}
    return spec
