"""Jobs of the kind latents: what is filled in and refused when they are submitted, and that a worker carries them out."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from sae_service.analysis.results import Table
from sae_service.jobs.presence import Presence
from sae_service.jobs.store import JobStore
from tests.conftest import DEMO
from tests.finished_jobs import HOOK, Finished, tiny_job
from workers.supervisor import Supervisor


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(tmp_path_factory.mktemp("service"))


@pytest.fixture(scope="module")
def api(service: Finished) -> Iterator[TestClient]:
    with TestClient(create_app(service.settings), "http://localhost") as client:
        yield client


@pytest.fixture(scope="module")
def trained(service: Finished, api: TestClient) -> str:
    return service.submitted(api, tiny_job())


def test_a_job_on_another_says_after_that_all_that_is_done(api: TestClient, trained: str) -> None:
    job = api.post("/v1/jobs", json={"kind": "latents", "job": trained, "tokens": 2000}).json()
    assert job["spec"]["saes"] == ["a", "b"]
    assert job["spec"]["stream"]["dataset"]["held_out_split"] == "test"
    assert (job["spec"]["stream"]["context_size"], job["spec"]["best"]) == (64, 20)
    assert job["origin"]["job_id"] == trained
    listed = next(one for one in api.get("/v1/jobs").json()["data"] if one["id"] == job["id"])
    assert listed["summary"]["kind"] == "latents"
    assert [sae["name"] for sae in listed["summary"]["saes"]] == ["a", "b"]
    assert api.delete(f"/v1/jobs/{trained}").status_code == 409, "its SAEs are still to be read"
    api.post(f"/v1/jobs/{job['id']}/cancel")
    again = api.post(f"/v1/jobs/{job['id']}/retry").json()
    assert again["spec"] == job["spec"]
    assert api.post(f"/v1/jobs/{again['id']}/fork", json={}).json()["code"] in ("invalid_spec", "not_found")
    api.post(f"/v1/jobs/{again['id']}/cancel")


@pytest.mark.parametrize(
    ("fields", "pointer", "text"),
    [
        ({"job": "job_unknown"}, "/job", "there is no job"),
        ({"saes": ["c"]}, "/saes/0", "it has a, b"),
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
    api: TestClient, trained: str, fields: dict[str, Any], pointer: str, text: str
) -> None:
    answer = api.post("/v1/jobs", json={"kind": "latents", "job": trained, **fields})
    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    assert (error["pointer"], text in error["detail"]) == (pointer, True), error


def test_a_job_that_has_not_succeeded_has_no_saes_to_look_at(api: TestClient) -> None:
    waiting = api.post("/v1/jobs", json=tiny_job()).json()["id"]
    answer = api.post("/v1/jobs", json={"kind": "latents", "job": waiting})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/job")
    assert "is queued" in answer.json()["detail"]
    api.post(f"/v1/jobs/{waiting}/cancel")


def test_a_worker_carries_it_out_as_it_does_any_job(service: Finished, api: TestClient, trained: str) -> None:
    spec = {"kind": "latents", "job": trained, "saes": ["b"], "tokens": 4000, "log_every": 2, "checkpoints": {"every_tokens": 1000}}
    job_id = api.post("/v1/jobs", json=spec).json()["id"]
    Presence(service.database, "w1", "default", 1, service.settings.lease_s).renew()
    Supervisor(service.database, service.settings, "w1", None).work(job_id, 1)
    store = JobStore(service.database)
    job = store.get(job_id)
    assert job.status == "succeeded", (job.error, store.events(job_id))
    assert job.progress is not None
    assert (job.progress.tokens, job.progress.total_tokens) == (3968, 3968)
    assert (job.progress.step, job.progress.total_steps) == (8, 8)
    final, before, *_ = store.checkpoints(job_id)
    files = ("latents.json", "latents.safetensors", "provenance.json")
    assert [entry.path for entry in final.files] == [f"saes/b/{name}" for name in files]
    assert 1 < final.metrics["b"]["l0"] < 20
    assert not before.is_final, "it could have gone on from there"
    table = Table(service.storage, f"{final.key}/saes/b")
    assert table.about["n_tokens"] < 3968, "BOS is not counted"
    assert table.whole("count").sum() / table.about["n_tokens"] == pytest.approx(final.metrics["b"]["l0"])
    metrics = api.get(f"/v1/jobs/{job_id}/metrics").json()["data"]
    assert [row["step"] for row in metrics] == [2, 4, 6, 8]
