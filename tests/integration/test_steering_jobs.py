"""Jobs that steer a model, through the service: what is refused, and what is shown to a program and on the command line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from safetensors.numpy import load_file
from typer.testing import CliRunner

from sae_service.analysis.steering.records import Steering
from sae_service.cli import app
from sae_service.client import Client
from sae_service.errors import NotFound
from sae_service.jobs.presence import Presence
from sae_service.jobs.store import JobStore
from tests.finished_jobs import Finished
from tests.served import served
from tests.steered import MODEL
from workers.supervisor import Supervisor

HOOK = "blocks.1.hook_resid_post"


def spec(job: str) -> dict[str, Any]:
    return {
        "kind": "steering", "job": job, "saes": ["b"], "latent": 3, "prompts": ["The king of"], "logits": [" king"],
        "contrast": [" king", " lord"], "coefficients": {"count": 25}, "continuations": {"coefficients": [0, 9], "tokens": 4},
    }  # fmt: skip


@pytest.fixture(scope="module")
def done(finished: Finished, finished_api: TestClient, trained: str) -> str:
    return finished.submitted(finished_api, spec(trained))


@pytest.fixture(scope="module")
def address(finished: Finished, done: str) -> Iterator[str]:
    with served(finished.settings) as url:
        yield f"http://{url}"


def test_a_job_says_after_that_all_that_is_done(finished_api: TestClient, trained: str, done: str) -> None:
    job = finished_api.get(f"/v1/jobs/{done}").json()
    assert job["spec"]["model"]["name"] == MODEL["name"]
    assert job["spec"]["exclude"] == ["bos", "eos", "pad"]
    assert (job["status"], job["origin"]["job_id"]) == ("succeeded", trained)
    listed = next(one for one in finished_api.get("/v1/jobs").json()["data"] if one["id"] == done)
    assert (listed["summary"]["kind"], listed["summary"]["model"]) == ("steering", MODEL["name"])
    assert f"{done}." not in json.dumps(finished_api.get("/v1/saes").json()), "the SAE is another job's"


DIRECTION = {"job": None, "saes": [], "latent": None, "model": MODEL, "direction": [1.0] * 128, "hook_name": HOOK}


@pytest.mark.parametrize(
    ("fields", "pointer", "text"),
    [
        ({"latent": 64}, "/latent", "0 to 63"),
        ({"latent": None}, "/latent", "or else a direction"),
        ({"latent": -1}, "/latent", "at least 0"),
        ({"saes": []}, "/saes", "the one SAE"),
        ({"saes": ["a", "b"]}, "/saes", "the one SAE"),
        ({"saes": ["d"]}, "/saes/0", "it has a, b, c"),
        ({"job": "job_unknown"}, "/job", "there is no job"),
        ({"model": MODEL | {"dtype": "bfloat16"}}, "/model", "leave it out"),
        ({"prompts": []}, "/prompts", "1 or more"),
        ({"prompts": [""]}, "/prompts/0", "not empty"),
        ({"prompts": [[]]}, "/prompts/0", "not empty"),
        ({"prompts": [[1] * 129]}, "/prompts/0", "context is 128"),
        ({"prompts": [[True]]}, "/prompts/0", "token ids"),
        ({"coefficients": {"count": 0}}, "/coefficients", ""),
        ({"coefficients": []}, "/coefficients", ""),
        ({"contrast": [" king"]}, "/contrast", "two tokens"),
        ({"clusters": 2, "contrast": None}, "/contrast", "required"),
        ({"mode": "ablate", "unit": "row_norm"}, "/unit", "shares"),
        ({"prompt": ["a"]}, "/prompt", "did you mean 'prompts'"),
        (DIRECTION | {"direction": [1.0] * 4}, "/direction", "have 128"),
        (DIRECTION | {"direction": [0.0] * 128}, "/direction", "zeros"),
        (DIRECTION | {"hook_name": None}, "/hook_name", "required"),
        (DIRECTION | {"hook_name": "blocks.7.hook_resid_post"}, "/hook_name", "0 to 3"),
        (DIRECTION | {"model": None}, "/model", "required"),
        (DIRECTION | {"model": {"name": "./nowhere"}}, "/model/name", ""),
    ],
)
def test_what_cannot_be_steered_is_refused_with_its_field(
    finished_api: TestClient, trained: str, fields: dict[str, Any], pointer: str, text: str
) -> None:
    answer = finished_api.post("/v1/jobs", json=spec(trained) | fields)
    assert answer.status_code == 422, answer.text
    found = [(error["pointer"], error["detail"]) for error in answer.json()["errors"]]
    assert any(place.startswith(pointer) and text in detail for place, detail in found), found


def test_what_was_seen_is_told_over_rest(finished_api: TestClient, done: str, trained: str) -> None:
    answer = finished_api.get(f"/v1/jobs/{done}/steering")
    assert answer.status_code == 200, answer.text
    found = Steering.model_validate(answer.json())
    assert (found.sae, found.latent, len(found.kl), found.kl[12] < 1e-6) == ("b", 3, 25, True)
    assert [one.coefficient for one in found.continuations] == [0, 9]
    other = finished_api.get(f"/v1/jobs/{trained}/steering")
    assert (other.status_code, "its kind is train" in other.json()["detail"]) == (404, True)
    waiting = finished_api.post("/v1/jobs", json=spec(trained)).json()["id"]
    assert "is queued" in finished_api.get(f"/v1/jobs/{waiting}/steering/file").json()["detail"]
    finished_api.post(f"/v1/jobs/{waiting}/cancel")


def test_a_program_and_the_command_line_read_it(address: str, done: str, trained: str, tmp_path: Path) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, [*arguments, "--url", address])

    client = Client(address)
    assert client.steering(done).latent == 3
    assert load_file(client.download_steering(done, tmp_path / "c"))["parts"].shape[:2] == (1, 25)
    with pytest.raises(NotFound):
        client.steering("job_x")
    shown = run("steering", done, "--columns", str(tmp_path / "d"))
    assert shown.exit_code == 0, shown.output
    for word in ("latent 3 of b", "KL", "' king' - ' lord'", "direct", "error added back", "goes on with", "21 of 25"):
        assert word in shown.output, shown.output
    assert json.loads(run("steering", done, "--json").output)["object"] == "job.steering"
    made = run("steer", f"{trained}.b", "3", "--prompt", "The king", "--contrast", " king", " lord", "--no-wait")
    assert made.exit_code == 0, made.output
    assert Client(address).job(made.output.strip()).spec["coefficients"]["count"] == 128
    Client(address).cancel(made.output.strip())
    wrong = run("steer", f"{trained}.b", "99", "--prompt", "The king", "--no-wait")
    assert (wrong.exit_code, "no latent 99" in wrong.output) == (2, True), wrong.output


def test_a_worker_carries_it_out_to_the_same_bytes(
    finished: Finished, finished_api: TestClient, trained: str, done: str
) -> None:
    job_id = finished_api.post("/v1/jobs", json=spec(trained)).json()["id"]
    Presence(finished.database, "w1", "default", 1, finished.settings.lease_s).renew()
    Supervisor(finished.database, finished.settings, "w1", None).work(job_id, 1)
    store = JobStore(finished.database)
    job = store.get(job_id)
    assert job.status == "succeeded", (job.error, store.events(job_id))
    files = [
        {entry.path: entry.sha256 for entry in store.checkpoint(one, "latest").files if "columns" in entry.path}
        for one in (job_id, done)
    ]
    assert files[0] == files[1]
