"""Jobs of the kind latents: what is filled in and refused when they are submitted, and that a worker carries them out."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from sae_service.analysis.results import Table
from sae_service.jobs.presence import Presence
from sae_service.jobs.store import JobStore
from tests.conftest import DEMO
from tests.finished_jobs import HOOK, Finished, tiny_job
from workers.supervisor import Supervisor


def test_a_job_on_another_says_after_that_all_that_is_done(finished_api: TestClient, trained: str) -> None:
    job = finished_api.post("/v1/jobs", json={"kind": "latents", "job": trained, "tokens": 2000}).json()
    assert job["spec"]["saes"] == ["a", "b", "c"]
    assert job["spec"]["stream"]["dataset"]["held_out_split"] == "test"
    assert (job["spec"]["stream"]["context_size"], job["spec"]["best"]) == (64, 20)
    assert job["origin"]["job_id"] == trained
    listed = next(one for one in finished_api.get("/v1/jobs").json()["data"] if one["id"] == job["id"])
    assert listed["summary"]["kind"] == "latents"
    assert [sae["name"] for sae in listed["summary"]["saes"]] == ["a", "b", "c"]
    assert finished_api.delete(f"/v1/jobs/{trained}").status_code == 409, "its SAEs are still to be read"
    finished_api.post(f"/v1/jobs/{job['id']}/cancel")
    again = finished_api.post(f"/v1/jobs/{job['id']}/retry").json()
    assert again["spec"] == job["spec"]
    assert finished_api.post(f"/v1/jobs/{again['id']}/fork", json={}).json()["code"] in ("invalid_spec", "not_found")
    finished_api.post(f"/v1/jobs/{again['id']}/cancel")


@pytest.mark.parametrize(
    ("fields", "pointer", "text"),
    [
        ({"job": "job_unknown"}, "/job", "there is no job"),
        ({"saes": ["d"]}, "/saes/0", "it has a, b, c"),
        ({"saes": ["a", "a"]}, "/saes", "once"),
        ({"tokens": 63}, "/tokens", "context_size (64)"),
        ({"tokens": 0}, "/tokens", "greater than 0"),
        ({"best": 0}, "/best", "at least 1"),
        ({"dataset": {"path": "/nowhere/at/all"}}, "/dataset/path", "outside"),
        ({"dataset": {"path": str(DEMO / "text"), "split": "dev"}}, "/dataset/split", "has no split 'dev'"),
        ({"dataset": {"path": str(DEMO / "text"), "column": "body"}}, "/dataset/column", "has no column 'body'"),
        ({"token": 5}, "/token", "did you mean 'tokens'"),
        ({"kind": "latent"}, "/kind", "did you mean 'latents'"),
        ({"job": None}, "/job", "finished job"),
        ({"job": None, "folders": [{"path": "./sae", "hook_name": HOOK, "name": "x"}]}, "/stream", "required"),
    ],
)
def test_what_cannot_be_looked_at_is_refused_with_its_field(
    finished_api: TestClient, trained: str, fields: dict[str, Any], pointer: str, text: str
) -> None:
    answer = finished_api.post("/v1/jobs", json={"kind": "latents", "job": trained, **fields})
    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    assert (error["pointer"], text in error["detail"]) == (pointer, True), error


def test_a_job_that_has_not_succeeded_has_no_saes_to_look_at(finished_api: TestClient) -> None:
    waiting = finished_api.post("/v1/jobs", json=tiny_job()).json()["id"]
    answer = finished_api.post("/v1/jobs", json={"kind": "latents", "job": waiting})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/job")
    assert "is queued" in answer.json()["detail"]
    finished_api.post(f"/v1/jobs/{waiting}/cancel")


def test_a_worker_carries_it_out_as_it_does_any_job(finished: Finished, finished_api: TestClient, trained: str) -> None:
    spec = {"kind": "latents", "job": trained, "saes": ["c"], "tokens": 4000, "log_every": 2, "checkpoints": {"every_tokens": 1000}}
    job_id = finished_api.post("/v1/jobs", json=spec).json()["id"]
    Presence(finished.database, "w1", "default", 1, finished.settings.lease_s).renew()
    Supervisor(finished.database, finished.settings, "w1", None).work(job_id, 1)
    store = JobStore(finished.database)
    job = store.get(job_id)
    assert job.status == "succeeded", (job.error, store.events(job_id))
    assert job.progress is not None
    assert (job.progress.tokens, job.progress.total_tokens) == (3968, 3968)
    assert (job.progress.step, job.progress.total_steps) == (8, 8)
    final, before, *_ = store.checkpoints(job_id)
    files = ("latents.json", "latents.safetensors", "provenance.json")
    assert [entry.path for entry in final.files] == [f"saes/c/{name}" for name in files]
    assert 1 < final.metrics["c"]["l0"] < 20
    assert not before.is_final, "it could have gone on from there"
    table = Table(finished.storage, f"{final.key}/saes/c")
    assert table.about["n_tokens"] < 3968, "BOS is not counted"
    assert table.whole("count").sum() / table.about["n_tokens"] == pytest.approx(final.metrics["c"]["l0"])
    metrics = finished_api.get(f"/v1/jobs/{job_id}/metrics").json()["data"]
    assert [row["step"] for row in metrics] == [2, 4, 6, 8]
