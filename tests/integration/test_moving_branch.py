"""A hub model whose branch moves while a job loads it: all that is read is of the commit that the branch had at first."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from sae_service.activations import model
from tests.conftest import DEMO
from tests.small_jobs import small_job, train

FIRST, SECOND = 40 * "1", 40 * "2"


@pytest.fixture
def branch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The branch of a model in the hub's local cache, at the first of two commits; the second has no tokenizer."""
    folder = tmp_path / "hub" / "models--org--demo"
    for commit in (FIRST, SECOND):
        shutil.copytree(DEMO / "model", folder / "snapshots" / commit)
    for file in (folder / "snapshots" / SECOND).glob("tokenizer*"):
        file.unlink()
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(FIRST)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return folder / "refs" / "main"


def test_a_job_reads_one_commit(branch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = model.load_bridge

    def moving(*arguments: Any) -> Any:
        bridge = load(*arguments)
        branch.write_text(SECOND)
        return bridge

    monkeypatch.setattr(model, "load_bridge", moving)
    job = small_job(model={"name": "org/demo"}, tokens=512)
    job["saes"] = job["saes"][:1]
    _, files = train(tmp_path / "storage", job)
    (name,) = (path for path in files if path.endswith("provenance.json"))
    assert branch.read_text() == SECOND
    assert json.loads(files[name])["model"] == {"name": "org/demo", "revision": FIRST}
