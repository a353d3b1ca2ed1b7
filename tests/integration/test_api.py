"""The REST interface without a worker: jobs stay queued, what is wrong is refused before that."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from api.files import byte_range
from sae_service.jobs.attempts import Attempt
from sae_service.jobs.database import Database
from sae_service.settings import Settings
from sae_service.storage.objects import Storage

ROOT = Path(__file__).parents[2]
CONTENT = bytes(range(256)) * 8


def test_a_job_is_created_found_and_listed(api: TestClient, spec: dict[str, Any]) -> None:
    made = api.post("/v1/jobs", json=spec)
    assert made.status_code == 201
    job = made.json()
    assert made.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert (job["object"], job["status"], job["attempt"]) == ("job", "queued", 1)
    assert job["spec"]["saes"][0]["optimizer"]["eps"] == 1e-8, "defaults are filled in"
    assert api.get(made.headers["Location"]).json() == job
    (listed,) = api.get("/v1/jobs").json()["data"]
    assert "spec" not in listed
    assert listed["summary"] == {
        "kind": "train", "looks_at_latents": False, "model": spec["stream"]["model"]["name"],
        "dataset": spec["stream"]["dataset"]["path"], "tokens": 40 * 256, "gpus": 1,
        "saes": [
            {"name": "a", "hook_name": "blocks.1.hook_resid_post", "kind": "jumprelu", "d_sae": 256},
            {"name": "b", "hook_name": "blocks.2.hook_mlp_out", "kind": "standard", "d_sae": 256},
        ],
    }  # fmt: skip
    assert {**job, **listed} == {**job, "summary": listed["summary"]}


def test_jobs_are_paged_and_selected(api: TestClient, spec: dict[str, Any]) -> None:
    made = [api.post("/v1/jobs", json=spec | {"metadata": {"n": str(n)}}).json()["id"] for n in range(3)]
    first = api.get("/v1/jobs", params={"limit": 2}).json()
    assert ([job["id"] for job in first["data"]], first["has_more"]) == ([made[2], made[1]], True)
    rest = api.get("/v1/jobs", params={"limit": 2, "after": first["last_id"]}).json()
    assert ([job["id"] for job in rest["data"]], rest["has_more"]) == ([made[0]], False)
    assert [job["id"] for job in api.get("/v1/jobs", params={"metadata[n]": "1"}).json()["data"]] == [made[1]]
    assert api.get("/v1/jobs", params={"status": "running"}).json()["data"] == []
    assert api.get("/v1/jobs", params={"after": "job_x"}).status_code == 400
    assert api.get("/v1/jobs", params={"limit": 0}).status_code == 400


def test_an_idempotency_key_makes_one_job(api: TestClient, spec: dict[str, Any]) -> None:
    headers = {"Idempotency-Key": '"once"'}
    first, again = (api.post("/v1/jobs", json=spec, headers=headers) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    other = api.post("/v1/jobs", json=spec | {"priority": 5}, headers={"Idempotency-Key": "once"})
    assert other.status_code == 422
    assert len(api.get("/v1/jobs").json()["data"]) == 1


def test_a_repetition_finds_its_job_when_what_the_job_reads_has_gone(
    api: TestClient, spec: dict[str, Any], tmp_path: Path
) -> None:
    headers = {"Idempotency-Key": "once"}
    (tmp_path / "text.jsonl").write_text('{"text": "a"}\n')
    spec["stream"]["dataset"] = {"path": str(tmp_path / "text.jsonl")}
    first = api.post("/v1/jobs", json=spec, headers=headers)
    (tmp_path / "text.jsonl").unlink()
    again = api.post("/v1/jobs", json=spec, headers=headers)
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    assert api.post("/v1/jobs", json=spec).status_code == 422


def test_a_queued_job_is_cancelled_at_once(api: TestClient, spec: dict[str, Any]) -> None:
    job_id = api.post("/v1/jobs", json=spec).json()["id"]
    cancelled = api.post(f"/v1/jobs/{job_id}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    events = api.get(f"/v1/jobs/{job_id}/events").json()["data"]
    assert [event["data"]["status"] for event in events] == ["queued", "cancelled"]


def test_a_queued_job_is_paused_and_resumed(api: TestClient, spec: dict[str, Any]) -> None:
    where = api.post("/v1/jobs", json=spec).headers["Location"]
    assert api.post(f"{where}/pause").json()["status"] == "paused"
    resumed = api.post(f"{where}/resume").json()
    assert (resumed["status"], resumed["attempt"]) == ("queued", 2)


def test_a_job_that_has_not_changed_is_not_sent_again(api: TestClient, spec: dict[str, Any]) -> None:
    where = api.post("/v1/jobs", json=spec).headers["Location"]
    etag = api.get(where).headers["ETag"]
    assert api.get(where, headers={"If-None-Match": etag}).status_code == 304
    api.post(f"{where}/cancel")
    assert api.get(where, headers={"If-None-Match": etag}).status_code == 200


@pytest.fixture
def finished(api: TestClient, settings: Settings, spec: dict[str, Any]) -> str:
    """The address of a job that has succeeded, with one file in its checkpoint."""
    job_id = api.post("/v1/jobs", json=spec).json()["id"]
    attempt = Attempt(Database(settings.resolved_database_url()), job_id, 1)
    attempt.claim("worker-1")
    entries = Storage(settings.resolved_storage_url()).publish(f"jobs/{job_id}/one", {"saes/a/weights": CONTENT})
    attempt.metrics([{"sae": "a", "step": 5, "loss": 0.5}], {
        "step": 5, "total_steps": 40, "tokens": 1280, "total_tokens": 10_240, "tokens_per_s": 100.0,
        "metrics": {"a": {"loss": 0.5}},
    })  # fmt: skip
    written = {"key": f"jobs/{job_id}/one", "step": 40, "tokens": 10_240, "is_final": True, "files": entries}
    attempt.commit(written | {"metrics": {"a": {"fvu": 0.1}}}, keep=1)
    return f"/v1/jobs/{job_id}"


def test_a_finished_job_cannot_be_cancelled_and_clients_need_not_try_again(api: TestClient, finished: str) -> None:
    refused = api.post(f"{finished}/cancel")
    assert (refused.status_code, refused.headers["X-Should-Retry"]) == (409, "false")


def test_metrics_and_checkpoints_are_listed(api: TestClient, finished: str) -> None:
    assert api.get(f"{finished}/metrics").json()["data"] == [
        {"id": "5:a", "sae": "a", "step": 5, "data": {"sae": "a", "step": 5, "loss": 0.5}}
    ]
    assert api.get(f"{finished}/metrics", params={"after_step": 5}).json()["data"] == []
    assert "must be the last_id of the previous page" in api.get(f"{finished}/metrics", params={"after": "x"}).json()["detail"]
    checkpoint = api.get(f"{finished}/checkpoints").json()["data"][0]
    assert (checkpoint["metrics"], checkpoint["is_final"]) == ({"a": {"fvu": 0.1}}, True)
    assert "key" not in checkpoint
    assert api.get(f"{finished}/checkpoints/latest").json() == checkpoint
    assert api.get(finished).json()["latest_checkpoint"] == checkpoint["id"]
    assert api.get(f"{finished}/checkpoints/ckpt_x").status_code == 404


def test_a_file_is_downloaded_whole_with_its_hash(api: TestClient, finished: str) -> None:
    whole = api.get(f"{finished}/checkpoints/latest/files/saes/a/weights")
    assert whole.content == CONTENT
    assert whole.headers["ETag"] == f'"{hashlib.sha256(CONTENT).hexdigest()}"'
    head = api.head(f"{finished}/checkpoints/latest/files/saes/a/weights")
    assert (head.status_code, head.content, head.headers["Content-Length"]) == (200, b"", str(len(CONTENT)))
    assert api.get(f"{finished}/checkpoints/latest/files/../manifest.json").status_code == 404
    unchanged = {"If-None-Match": whole.headers["ETag"]}
    assert api.get(f"{finished}/checkpoints/latest/files/saes/a/weights", headers=unchanged).status_code == 304


@pytest.mark.parametrize(
    ("range", "status", "content"),
    [
        ("bytes=0-9", 206, CONTENT[:10]),
        ("bytes=2000-", 206, CONTENT[2000:]),
        ("bytes=-5", 206, CONTENT[-5:]),
        ("bytes=2040-9999", 206, CONTENT[2040:]),
        ("bytes=9-2", 200, CONTENT),
        ("bytes=0-1,4-5", 200, CONTENT),
        ("lines=1-2", 200, CONTENT),
    ],
)
def test_a_part_of_a_file_is_downloaded(api: TestClient, finished: str, range: str, status: int, content: bytes) -> None:
    part = api.get(f"{finished}/checkpoints/latest/files/saes/a/weights", headers={"Range": range})
    assert (part.status_code, part.content) == (status, content)


def test_a_part_that_is_not_there_is_refused_and_a_stale_one_is_sent_whole(api: TestClient, finished: str) -> None:
    url = f"{finished}/checkpoints/latest/files/saes/a/weights"
    beyond = api.get(url, headers={"Range": "bytes=2048-"})
    assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, "bytes */2048")
    assert api.get(url, headers={"Range": "bytes=0-1", "If-Range": '"other"'}).content == CONTENT
    assert byte_range("bytes=-", 10) is None


def test_events_are_streamed_with_their_ids_and_the_stream_ends_with_the_job(api: TestClient, finished: str) -> None:
    text = api.get(f"{finished}/events", params={"stream": True}).text
    ids = [int(line.removeprefix("id: ")) for line in text.splitlines() if line.startswith("id: ")]
    assert ids == list(range(1, len(ids) + 1))
    assert "event: metrics" in text
    assert '"status":"succeeded"' in text
    again = api.get(f"{finished}/events", params={"stream": True}, headers={"Last-Event-ID": str(ids[-1] - 1)}).text
    assert f"id: {ids[-1]}\n" in again
    assert f"id: {ids[-2]}\n" not in again
    assert api.get(f"{finished}/events?stream=true&after={ids[-1]}").status_code == 204


def test_the_catalog_describes_every_architecture(api: TestClient) -> None:
    found = {entry["kind"]: entry for entry in api.get("/v1/architectures").json()["data"]}
    assert {"standard", "gated", "jumprelu"} <= set(found)
    assert found["jumprelu"]["optimizer"]["lr"] == 7e-5
    assert "bandwidth" in found["jumprelu"]["config_schema"]["properties"]


def test_health_and_description_are_there(api: TestClient) -> None:
    assert api.get("/healthz").json() == {"status": "ok"}
    assert api.get("/readyz").json() == {"status": "ok"}
    description = api.get("/openapi.json").json()
    examples = description["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    assert len(examples) >= 2


def test_it_is_alive_while_all_its_threads_wait(tmp_path: Path) -> None:
    async def asked() -> int:
        limiter = anyio.to_thread.current_default_thread_limiter()
        for waiting in range(int(limiter.total_tokens)):
            limiter.acquire_on_behalf_of_nowait(waiting)
        transport = httpx.ASGITransport(create_app(Settings(data_dir=tmp_path)))
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            with anyio.fail_after(10):
                return (await client.get("/healthz")).status_code

    assert anyio.run(asked) == 200


def test_an_application_has_its_tables_before_it_serves(settings: Settings) -> None:
    app = create_app(settings)
    assert not app.state.keys.has_valid()
    app.state.keys.create("a", ("read",))
    assert app.state.keys.has_valid()


def test_an_address_that_others_can_reach_needs_a_key(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "api", "--host", "0.0.0.0", "--port", "0"]
    ended = subprocess.run(command, cwd=tmp_path, env=None, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "sae-service keys create" in ended.stderr


def test_the_examples_of_the_description_are_valid_jobs() -> None:
    from api.examples import JOB_EXAMPLES
    from sae_service.spec.kinds import SPECS, kind_of

    for example in JOB_EXAMPLES.values():
        SPECS[kind_of(example["value"])].model_validate(example["value"])
