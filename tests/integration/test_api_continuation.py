"""The REST interface to jobs that go on from others, to deletion and to workers; without a worker process."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from api.events import stream_of_events
from api.following import Following
from sae_service.errors import StorageFailure
from sae_service.jobs import tables
from sae_service.jobs.attempts import Attempt
from sae_service.jobs.database import Database
from sae_service.jobs.presence import Presence
from sae_service.jobs.store import JobStore
from sae_service.settings import Settings
from sae_service.storage.objects import Storage

LEASE_S = 60.0


@pytest.fixture
def database(settings: Settings) -> Database:
    return Database(settings.resolved_database_url())


@pytest.fixture
def begun(api: TestClient, database: Database, settings: Settings, spec: dict[str, Any]) -> Attempt:
    """A job with a checkpoint at step 6, in work."""
    attempt = Attempt(database, api.post("/v1/jobs", json=spec).json()["id"], 1)
    assert attempt.claim("worker-1") is not None
    commit(attempt, settings, 6)
    return attempt


def commit(attempt: Attempt, settings: Settings, step: int, keep: int = 1, is_final: bool = False) -> list[str]:
    key = f"jobs/{attempt.job_id}/{step}"
    files = Storage(settings.resolved_storage_url()).publish(key, {"saes/a/cfg.json": b"{}"})
    made = {"key": key, "step": step, "tokens": step * 256, "is_final": is_final, "files": files, "metrics": {}}
    return attempt.commit(made, keep)


def test_a_fork_of_a_running_job_is_a_new_job_that_says_where_it_comes_from(api: TestClient, begun: Attempt) -> None:
    changes = {"saes": {"b": {"optimizer": {"lr": 5e-4}, "architecture": {"l1_coefficient": 2.0}}}, "tokens": 80 * 256}
    made = api.post(f"/v1/jobs/{begun.job_id}/fork", json=changes)
    assert made.status_code == 201, made.text
    job = made.json()
    assert made.headers["Location"] == f"/v1/jobs/{job['id']}"
    (checkpoint,) = api.get(f"/v1/jobs/{begun.job_id}/checkpoints").json()["data"]
    assert job["origin"] == {"job_id": begun.job_id, "checkpoint_id": checkpoint["id"], "step": 6, "tokens": 6 * 256}
    assert job["spec"]["saes"][1]["optimizer"]["lr"] == 5e-4
    assert job["spec"]["saes"][1]["architecture"]["l1_coefficient"] == 2.0
    assert job["spec"]["stream"]["tokens"] == 80 * 256
    assert job["spec"]["saes"][0]["optimizer"]["lr"] == 1e-3
    assert api.get(f"/v1/jobs/{begun.job_id}").json()["status"] == "running"


def test_a_checkpoint_is_kept_until_the_job_that_goes_on_from_it_has_ended(
    api: TestClient, begun: Attempt, settings: Settings
) -> None:
    forked = api.post(f"/v1/jobs/{begun.job_id}/fork", json={}).json()["id"]
    assert commit(begun, settings, 12) == []
    assert commit(begun, settings, 18) == [f"jobs/{begun.job_id}/12"]
    assert [item["step"] for item in api.get(f"/v1/jobs/{begun.job_id}/checkpoints").json()["data"]] == [18, 6]
    api.post(f"/v1/jobs/{forked}/cancel")
    assert sorted(commit(begun, settings, 24)) == [f"jobs/{begun.job_id}/18", f"jobs/{begun.job_id}/6"]


def test_only_a_job_that_has_succeeded_is_extended(api: TestClient, begun: Attempt, settings: Settings) -> None:
    path, longer = f"/v1/jobs/{begun.job_id}/extend", {"tokens": 80 * 256}
    assert api.post(path, json=longer).status_code == 409
    commit(begun, settings, 40, is_final=True)
    made = api.post(path, json=longer)
    assert (made.status_code, made.json()["origin"]["step"]) == (201, 40)
    shorter = api.post(path, json={"tokens": 40 * 256})
    assert (shorter.status_code, shorter.json()["param"]) == (422, "/tokens")


def test_only_a_job_that_has_failed_or_was_cancelled_is_tried_again(api: TestClient, begun: Attempt) -> None:
    path = f"/v1/jobs/{begun.job_id}/retry"
    assert api.post(path).status_code == 409
    begun.fail({"code": "nan_loss", "message": "The loss is not finite.", "param": None})
    headers = {"Idempotency-Key": "once"}
    first, again = (api.post(path, headers=headers) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"] != begun.job_id
    assert first.json()["origin"]["step"] == 6


@pytest.mark.parametrize(
    ("code", "param", "status"),
    [
        ("invalid_spec", "/saes/0/hook_name", 409), ("invalid_spec", None, 409), ("invalid_spec", "/stream/dataset/column", 201),
        ("invalid_spec", "/saes/1/initial/path", 201), ("data_not_found", "/stream/dataset", 201),
    ],
)  # fmt: skip
def test_a_job_that_its_own_spec_has_failed_is_tried_again_only_if_files_may_have_been_mended(
    api: TestClient, begun: Attempt, code: str, param: str | None, status: int
) -> None:
    begun.fail({"code": code, "message": "It cannot be.", "param": param})
    answer = api.post(f"/v1/jobs/{begun.job_id}/retry")
    assert answer.status_code == status
    if status == 409:
        assert "failed by its own spec" in answer.json()["detail"]
        assert "submit it as a new job" in answer.json()["detail"]


@pytest.mark.parametrize("what", ["extend", "fork", "retry", "conversion"])
def test_a_job_of_a_newer_release_is_not_gone_on_with(
    api: TestClient, begun: Attempt, settings: Settings, database: Database, what: str
) -> None:
    if what != "retry":
        commit(begun, settings, 40, is_final=True)
    else:
        begun.fail({"code": "nan_loss", "message": "The loss is not finite.", "param": None})
    with database.transaction() as connection:
        newer = JobStore(database).get(begun.job_id).spec | {"schema_version": 99}
        connection.execute(sa.update(tables.jobs).where(tables.jobs.c.id == begun.job_id).values(spec=newer))
    path = f"/v1/jobs/{begun.job_id}"
    if what == "conversion":
        answer = api.get(f"{path}/checkpoints/latest/saes/a/download?format=saelens")
    else:
        answer = api.post(f"{path}/{what}", json={"tokens": 80 * 256} if what != "retry" else None)
    assert (answer.status_code, answer.json()["code"]) == (409, "wrong_version"), answer.text
    assert "version 99" in answer.json()["detail"]


def test_a_job_that_was_trained_but_not_evaluated_is_tried_again_and_forked(
    api: TestClient, begun: Attempt, settings: Settings
) -> None:
    commit(begun, settings, 40)
    begun.fail({"code": "data_not_found", "message": "The held-out text has gone.", "param": None})
    path = f"/v1/jobs/{begun.job_id}"
    for made in (api.post(f"{path}/retry"), api.post(f"{path}/fork", json={"evaluation": {"tokens": 2048}})):
        assert (made.status_code, made.json()["origin"]["step"]) == (201, 40), made.text
    shorter = api.post(f"{path}/fork", json={"tokens": 40 * 256 - 1})
    assert (shorter.status_code, shorter.json()["param"]) == (422, "/tokens")


def test_a_repeated_fork_is_the_first_one_though_its_job_has_gone_on(
    api: TestClient, begun: Attempt, settings: Settings
) -> None:
    path, headers = f"/v1/jobs/{begun.job_id}/fork", {"Idempotency-Key": "once"}
    first = api.post(path, json={}, headers=headers).json()["id"]
    commit(begun, settings, 12)
    again = api.post(path, json={}, headers=headers)
    assert (again.status_code, again.json()["id"]) == (200, first), again.text
    api.post(f"/v1/jobs/{first}/cancel")
    begun.fail({"code": "nan_loss", "message": "The loss is not finite.", "param": None})
    assert api.delete(f"/v1/jobs/{begun.job_id}").status_code == 204
    assert api.post(path, json={}, headers=headers).json()["id"] == first
    other = api.post(path, json={"tokens": 80 * 256}, headers=headers)
    assert other.status_code == 422


def test_a_job_without_a_checkpoint_is_tried_again_from_its_beginning(api: TestClient, spec: dict[str, Any]) -> None:
    job = api.post("/v1/jobs", json=spec).json()
    api.post(f"/v1/jobs/{job['id']}/cancel")
    again = api.post(f"/v1/jobs/{job['id']}/retry").json()
    assert (again["origin"], again["spec"]) == (None, job["spec"])
    missing = api.post(f"/v1/jobs/{job['id']}/fork", json={})
    assert (missing.status_code, missing.json()["param"]) == (404, "/checkpoint")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"saes": {"c": {}}}, "/saes/c"),
        ({"saes": {"a": {"architecture": {"d_sae": 8}}}}, "/saes/a/architecture/d_sae"),
        ({"stream": {"seed": 1}}, "/stream"),
        ({"tokens": 256}, "/tokens"),
        ({"tokens": "many"}, "/tokens"),
    ],
)
def test_a_fork_that_cannot_work_is_refused_with_its_field(
    api: TestClient, begun: Attempt, body: dict[str, Any], param: str
) -> None:
    refused = api.post(f"/v1/jobs/{begun.job_id}/fork", json=body)
    assert (refused.status_code, refused.json()["param"]) == (422, param)
    assert len(api.get("/v1/jobs").json()["data"]) == 1


def test_a_job_that_has_ended_is_deleted_with_its_files(
    api: TestClient, begun: Attempt, settings: Settings, tmp_path: Path
) -> None:
    path = f"/v1/jobs/{begun.job_id}"
    assert api.delete(path).status_code == 409
    commit(begun, settings, 40, is_final=True)
    heir = api.post(f"{path}/extend", json={"tokens": 80 * 256}).json()["id"]
    assert api.delete(path).status_code == 409, "another job has yet to read its checkpoint"
    api.post(f"/v1/jobs/{heir}/cancel")
    assert api.delete(path).status_code == 204
    assert api.get(path).status_code == 404
    assert api.delete(path).status_code == 404
    assert not (tmp_path / "storage" / "jobs" / begun.job_id).exists()
    assert api.get(f"/v1/jobs/{heir}").json()["origin"]["job_id"] == begun.job_id


def test_a_job_whose_files_cannot_be_deleted_stays_and_can_be_deleted_again(
    api: TestClient, begun: Attempt, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, files = f"/v1/jobs/{begun.job_id}", tmp_path / "storage" / "jobs" / begun.job_id
    commit(begun, settings, 40, is_final=True)

    def unreachable(self: Storage, prefix: str) -> None:
        raise StorageFailure("the bucket does not answer")

    with monkeypatch.context() as outage:
        outage.setattr(Storage, "delete", unreachable)
        assert api.delete(path).json()["code"] == StorageFailure.code
    assert api.get(path).json()["status"] == "succeeded"
    assert files.exists()
    assert api.delete(path).status_code == 204
    assert not files.exists()


def test_a_stream_of_events_ends_when_its_job_is_deleted(api: TestClient, spec: dict[str, Any], database: Database) -> None:
    path = f"/v1/jobs/{api.post('/v1/jobs', json=spec).json()['id']}"
    jobs = JobStore(database)

    async def parts() -> list[str]:
        found = []
        async for part in stream_of_events(jobs, Following(jobs), path.split("/")[-1], 0):
            if "queued" in part:
                api.post(f"{path}/cancel")
                assert api.delete(path).status_code == 204
            found.append(part)
        return found

    assert "queued" in asyncio.run(parts())[1]


def test_a_queued_job_says_whether_anyone_could_take_it(api: TestClient, database: Database, spec: dict[str, Any]) -> None:
    plain = api.post("/v1/jobs", json=spec).json()["id"]
    large = api.post("/v1/jobs", json=spec | {"gpus": 2}).json()["id"]

    def reasons() -> tuple[str, str]:
        return tuple(api.get(f"/v1/jobs/{job}").json()["status_reason"] for job in (plain, large))  # pyright: ignore[reportReturnType]

    assert reasons() == ("waiting_for_worker", "waiting_for_worker")
    small, big = (Presence(database, f"here:{gpus}", "default", gpus, LEASE_S) for gpus in (1, 2))
    small.renew()
    assert reasons() == ("waiting_for_capacity", "waiting_for_worker")
    big.renew()
    big.renew()
    assert reasons() == ("waiting_for_capacity", "waiting_for_capacity")
    assert [(item["name"], item["gpus"], item["job_id"]) for item in api.get("/v1/workers").json()["data"]] == [
        ("here:1", 1, None), ("here:2", 2, None),
    ]  # fmt: skip
    with database.transaction() as connection:
        connection.execute(sa.update(tables.workers).values(seen_at=tables.workers.c.seen_at - 100))
    assert reasons() == ("waiting_for_worker", "waiting_for_worker")
    assert api.get("/v1/workers").json()["data"] == []


def test_more_gpus_than_saes_are_refused(api: TestClient, spec: dict[str, Any]) -> None:
    refused = api.post("/v1/jobs", json=spec | {"gpus": 3})
    assert (refused.status_code, refused.json()["param"]) == (422, "/gpus")
