"""Jobs of a service that have succeeded, without a worker's time: they are carried out in this process, once."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from sae_service import kinds
from sae_service.jobs.attempts import Attempt
from sae_service.jobs.database import Database
from sae_service.settings import Settings
from sae_service.spec.stored import read
from sae_service.storage.job_folders import job_folder
from sae_service.storage.objects import Storage
from sae_service.surroundings import Surroundings
from tests.conftest import DEMO
from tests.recorder import Recorder

HOOK = "blocks.2.hook_resid_post"


def tiny_job(**fields: Any) -> dict[str, Any]:
    """Three SAEs, 12 steps."""
    optimizer = {"lr": 3e-3, "lr_warm_up": 0.1, "sparsity_warm_up": 0.2}
    sae = {"hook_name": HOOK, "optimizer": optimizer, "architecture": {"kind": "topk", "d_sae": 64, "k": 6}}
    return {
        "stream": {
            "model": {"name": str(DEMO / "model")}, "dataset": {"path": str(DEMO / "text"), "held_out_split": "test"},
            "tokens": 12 * 256, "batch": 256, "prompts": 8, "context_size": 64,
        },
        "saes": [
            {**sae, "name": "a"}, {**sae, "name": "b", "seed": 1}, {**sae, "name": "c", "seed": 2},
        ],
        "evaluation": {"tokens": 1024},
    } | fields  # fmt: skip


class Finished:
    """Carries out the jobs that are submitted to a service in a folder."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(data_dir=folder, allowed_roots=(folder.parent, DEMO))
        self.database = Database(self.settings.resolved_database_url())
        self.storage = Storage(self.settings.resolved_storage_url())

    def submitted(self, api: TestClient, spec: dict[str, Any]) -> str:
        """Submits a job and carries it out. Returns its id."""
        made = api.post("/v1/jobs", json=spec)
        assert made.status_code == 201, made.text
        job_id = made.json()["id"]
        self.carry_out(job_id)
        return job_id

    def carry_out(self, job_id: str) -> Recorder:
        """Does what the attempt of a worker does that nothing befalls."""
        attempt, recorder = Attempt(self.database, job_id, 1), Recorder()
        spec = attempt.claim("here")
        assert spec is not None
        begin_with = attempt.origin_key()
        final = kinds.run(read(spec), Surroundings(self.storage, job_folder(job_id), recorder, begin_with=begin_with))
        assert final is not None
        for written in recorder.checkpoints:
            committed = asdict(written)
            committed.pop("written_s")
            attempt.commit(committed, keep=2)
        return recorder
