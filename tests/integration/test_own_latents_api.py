"""Training jobs that look at their own latents, over REST: what is refused, what is found, and what goes on from them."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from tests.finished_jobs import Finished, tiny_job

PART = {"tokens": 4096, "best": 3, "per_quantile": 1}
SYNTHETIC = {
    "stream": {"synthetic": {"n_features": 64, "d_in": 32}, "tokens": 4096, "batch": 256, "context_size": 64},
    "saes": [{"hook_name": "hook_synthetic", "architecture": {"kind": "topk", "d_sae": 64, "k": 4}}],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def api(finished: Finished) -> Iterator[TestClient]:
    with TestClient(create_app(finished.settings), "http://localhost") as client:
        yield client


@pytest.fixture(scope="module")
def job_id(finished: Finished, api: TestClient) -> str:
    return finished.submitted(api, tiny_job(latents=PART))


@pytest.mark.parametrize(
    ("fields", "pointer", "text"),
    [
        (SYNTHETIC, "/latents", "synthetic activations have none"),
        ({"latents": {"tokens": 63}}, "/latents/tokens", "context_size (64)"),
        ({"latents": {"best": 0}}, "/latents/best", "at least 1"),
        ({"latents": {"token": 64}}, "/latents/token", "did you mean 'tokens'"),
    ],
)
def test_a_look_that_cannot_be_is_refused_with_its_field(
    api: TestClient, fields: dict[str, Any], pointer: str, text: str
) -> None:
    answer = api.post("/v1/jobs", json=tiny_job(latents=PART) | fields)
    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    assert (error["pointer"], text in error["detail"]) == (pointer, True), error


def test_the_saes_of_such_a_job_say_what_their_latents_do(api: TestClient, job_id: str) -> None:
    listed = api.get("/v1/saes").json()["data"]
    assert [(one["id"], one["latents_job"]) for one in listed] == [(f"{job_id}.{name}", job_id) for name in "abc"]
    found = api.get(f"/v1/saes/{job_id}.b").json()
    assert (found["looked_at"]["n_prompts"], found["metrics"]["fvu"] > 0) == (4096 // 64, True)
    entry = api.get(f"/v1/saes/{job_id}.b/latents", params={"sort": "density", "order": "desc"}).json()["data"][0]
    latent = api.get(f"/v1/saes/{job_id}.b/latents/{entry['latent']}").json()
    assert latent["passages"][0]["largest"] == entry["largest"] > 0
    assert api.get(f"/v1/saes/{job_id}.b/latents/file").status_code == 200


def test_a_later_look_takes_its_place(finished: Finished, api: TestClient, job_id: str) -> None:
    later = finished.submitted(api, {"kind": "latents", "job": job_id, "saes": ["a"], "tokens": 2048})
    looked = {name: api.get(f"/v1/saes/{job_id}.{name}").json() for name in "ab"}
    assert {name: found["latents_job"] for name, found in looked.items()} == {"a": later, "b": job_id}
    assert {name: found["looked_at"]["n_prompts"] for name, found in looked.items()} == {"a": 2048 // 64, "b": 4096 // 64}


def test_a_job_that_goes_on_looks_again_at_what_its_saes_have_become(finished: Finished, api: TestClient, job_id: str) -> None:
    longer = api.post(f"/v1/jobs/{job_id}/extend", json={"tokens": 16 * 256}).json()
    assert longer["spec"]["latents"] == api.get(f"/v1/jobs/{job_id}").json()["spec"]["latents"]
    recorder = finished.carry_out(longer["id"])
    assert [message for _, message in recorder.events].count("Looking at latents on 4,096 tokens of text.") == 1
    looked = [api.get(f"/v1/saes/{job}.b/latents/file").content for job in (job_id, longer["id"])]
    assert looked[0] != looked[1]
    forked = api.post(f"/v1/jobs/{job_id}/fork", json={"tokens": 14 * 256, "latents": {"tokens": 2048}}).json()
    assert (forked["spec"]["latents"]["tokens"], forked["spec"]["latents"]["best"]) == (2048, 3)
