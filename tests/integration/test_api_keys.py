"""Keys with names, scopes and projects: made and revoked on the command line, noticed by a service that runs."""

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from api import access, events
from api.app import create_app
from sae_service.cli import app
from sae_service.errors import Conflict, InvalidSpec, ServiceUnavailable
from sae_service.jobs import tables
from sae_service.jobs.database import Database
from sae_service.jobs.keys import Keys, hashed
from sae_service.jobs.presence import Presence
from sae_service.settings import Settings


@pytest.fixture
def keys(settings: Settings) -> Keys:
    return Keys.at(settings.resolved_database_url())


@pytest.fixture(autouse=True)
def _noticed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "FRESH_S", 0.0)


@pytest.fixture
def divided(tmp_path: Path, keys: Keys) -> Iterator[TestClient]:
    """A service whose keys see the jobs of their projects only."""
    settings = Settings(data_dir=tmp_path, projects=True)
    with TestClient(create_app(settings), "http://sae.example", raise_server_exceptions=False) as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def run(*arguments: str, data_dir: Path) -> Any:
    return CliRunner().invoke(app, ["keys", *arguments, "--data-dir", str(data_dir)])


def test_a_key_is_made_shown_once_listed_and_revoked(api: TestClient, settings: Settings, tmp_path: Path) -> None:
    assert api.get("/v1/jobs").status_code == 200
    made = run("create", "ci", "--scopes", "read,submit", "--expires", "30", data_dir=tmp_path)
    key = made.stdout.strip()
    assert (made.exit_code, key[:4], len(key)) == (0, "sae_", 47)
    assert api.get("/v1/jobs").status_code == 401, "from the first key on everybody needs one"
    assert api.get("/v1/jobs", headers=bearer(key)).status_code == 200
    (listed,) = json.loads(run("list", "--json", data_dir=tmp_path).stdout)
    assert (listed["name"], listed["scopes"], listed["is_valid"]) == ("ci", ["read", "submit"], True)
    assert listed["expires_at"] == listed["created_at"] + 30 * 86_400
    assert "ci" in run("list", data_dir=tmp_path).output
    assert run("revoke", "ci", data_dir=tmp_path).exit_code == 0
    assert api.get("/v1/jobs", headers=bearer(key)).status_code == 401
    assert api.get("/v1/jobs").status_code == 401, "a service that has had a key stays closed"
    assert run("revoke", "nobody", data_dir=tmp_path).exit_code == 3


def test_only_a_hash_of_a_key_is_stored(keys: Keys, settings: Settings) -> None:
    key = keys.create("ci", ("read",))
    with Database(settings.resolved_database_url()).transaction() as connection:
        (row,) = connection.execute(sa.select(tables.keys)).mappings().all()
    assert row["hash"] == hashed(key)
    assert key not in json.dumps(dict(row))


@pytest.mark.parametrize(
    ("name", "scopes", "field"),
    [("a b", ("read",), "name"), ("x" * 65, ("read",), "name"), ("", ("read",), "name"), ("a", ("write",), "scopes")],
)
def test_a_key_has_a_plain_name_and_known_scopes(keys: Keys, name: str, scopes: tuple[str, ...], field: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        keys.create(name, scopes)
    assert refused.value.param == field


def test_a_name_is_used_once(keys: Keys) -> None:
    keys.create("ci", ("read",))
    keys.revoke("ci")
    with pytest.raises(Conflict, match="used twice"):
        keys.create("ci", ("read",))


def test_a_key_expires(api: TestClient, keys: Keys, settings: Settings) -> None:
    key = keys.create("ci", ("read",), expires_days=1)
    assert api.get("/v1/jobs", headers=bearer(key)).status_code == 200
    with Database(settings.resolved_database_url()).transaction() as connection:
        connection.execute(sa.update(tables.keys).values(expires_at=1))
    assert api.get("/v1/jobs", headers=bearer(key)).status_code == 401


def test_a_key_may_do_what_its_scopes_say(api: TestClient, keys: Keys, spec: dict[str, Any]) -> None:
    reads, submits, manages = (bearer(keys.create(scope, (scope,))) for scope in ("read", "submit", "manage"))
    made = api.post("/v1/jobs", json=spec, headers=submits)
    where = made.headers["Location"]
    assert (made.status_code, made.json()["submitter"]) == (201, "submit")
    assert api.get(where, headers=reads).json()["submitter"] == "submit"
    for headers, method, path, scope in (
        (reads, "POST", "/v1/jobs", "submit"), (reads, "POST", f"{where}/cancel", "manage"), (submits, "GET", where, "read"),
        (submits, "GET", f"{where}/logs", "read"),
        (submits, "DELETE", where, "manage"), (manages, "POST", f"{where}/retry", "submit"), (manages, "GET", "/v1/jobs", "read"),
    ):  # fmt: skip
        refused = api.request(method, path, headers=headers, content=b"{" if method == "POST" else None)
        assert (refused.status_code, refused.json()["code"]) == (403, "missing_scope")
        assert f"scope {scope};" in refused.json()["detail"]
        assert f'scope="{scope}"' in refused.headers["WWW-Authenticate"]
    assert api.post(f"{where}/cancel", headers=manages).json()["status"] == "cancelled"
    assert api.delete(where, headers=manages).status_code == 204


def test_with_projects_a_key_sees_nothing_of_another_projects(divided: TestClient, keys: Keys, spec: dict[str, Any]) -> None:
    ours, theirs = (bearer(keys.create(name, ("read", "submit", "manage"), name)) for name in ("ours", "theirs"))
    job = divided.post("/v1/jobs", json=spec, headers=ours).json()
    assert (job["project"], job["submitter"]) == ("ours", "ours")
    bodies = {"extend": {"tokens": 10**6}, "fork": {}}
    paths = divided.get("/openapi.json").json()["paths"]
    asked = [(method, path) for path, operations in paths.items() if "{job_id}" in path for method in operations]
    assert len(asked) > 10
    for method, path in asked:
        filled = path.format(job_id=job["id"], checkpoint_id="latest", path="saes/a/cfg.json", name="a")
        filled += "?format=saelens" if "format" in str(paths[path][method].get("parameters")) else ""
        body = bodies.get(filled.rpartition("/")[2])
        answer = divided.request(method.upper(), filled, headers=theirs, json=body)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), (method, path, answer.text)
    assert divided.get("/v1/jobs", headers=theirs).json()["data"] == []
    assert divided.get("/v1/jobs", params={"after": job["id"]}, headers=theirs).status_code == 400
    assert [found["id"] for found in divided.get("/v1/jobs", headers=ours).json()["data"]] == [job["id"]]
    assert divided.get(f"/v1/jobs/{job['id']}", headers=ours).json()["status"] == "queued"


def test_with_projects_workers_are_shared_but_not_what_they_work_on(
    divided: TestClient, keys: Keys, settings: Settings, spec: dict[str, Any]
) -> None:
    ours, theirs = (bearer(keys.create(name, ("read", "submit"), name)) for name in ("ours", "theirs"))
    job_id = divided.post("/v1/jobs", json=spec, headers=ours).json()["id"]
    database = Database(settings.resolved_database_url())
    Presence(database, "host:1", "default", 1, lease_s=60).renew()
    with database.transaction() as connection:
        connection.execute(sa.update(tables.jobs).values(status="running", worker="host:1"))
    assert divided.get("/v1/workers", headers=ours).json()["data"][0]["job_id"] == job_id
    assert divided.get("/v1/workers", headers=theirs).json()["data"][0]["job_id"] is None


def test_two_callers_may_draw_the_same_idempotency_key(divided: TestClient, keys: Keys, spec: dict[str, Any]) -> None:
    made = [
        divided.post("/v1/jobs", json=spec, headers=bearer(keys.create(name, ("submit",), name)) | {"Idempotency-Key": "once"})
        for name in ("ours", "theirs")
    ]
    assert [answer.status_code for answer in made] == [201, 201]


def test_without_projects_keys_share_their_jobs(api: TestClient, keys: Keys, spec: dict[str, Any]) -> None:
    ours, theirs = (bearer(keys.create(name, ("read", "submit"), name)) for name in ("ours", "theirs"))
    where = api.post("/v1/jobs", json=spec, headers=ours).headers["Location"]
    assert api.get(where, headers=theirs).json()["project"] == "ours"


def test_keys_are_read_every_few_seconds_and_go_on_while_the_database_is_away(
    api: TestClient, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = bearer(keys.create("ci", ("read",)))
    assert api.get("/v1/architectures", headers=key).status_code == 200
    monkeypatch.setattr(access, "FRESH_S", 60.0)
    keys.revoke("ci")
    assert api.get("/v1/architectures", headers=key).status_code == 200
    monkeypatch.setattr(access, "FRESH_S", 0.0)
    assert api.get("/v1/architectures", headers=key).status_code == 401
    assert access.FRESH_S <= 5


def test_a_key_in_place_of_its_hash_is_no_setting_and_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAE_SERVICE_API_KEY_SHA256", '["sae_mykey"]')
    refused = run("list", data_dir=tmp_path)
    assert refused.exit_code == 2
    assert "SAE_SERVICE_API_KEY_SHA256: entry 1 is no SHA-256 hash, which has 64 hex digits" in refused.output
    with pytest.raises(ValueError, match="64 hex digits") as error:
        Settings()
    assert "sae_mykey" not in str(error.value) + refused.output


def test_with_projects_no_job_reads_the_files_of_jobs(
    divided: TestClient, keys: Keys, spec: dict[str, Any], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = bearer(keys.create("theirs", ("submit",), "theirs"))
    stored = settings.data_dir / "storage" / "jobs" / "job_of_ours"
    stored.mkdir(parents=True)
    (stored / "manifest.jsonl").write_text('{"text": "secret"}\n')
    # Below a folder that jobs may read, as the default one is.
    monkeypatch.chdir(settings.data_dir.parent)
    changed = spec | {"stream": spec["stream"] | {"dataset": {"path": str(stored)}}}
    refused = divided.post("/v1/jobs", json=changed, headers=theirs)
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/stream/dataset/path")
    assert "outside the folders" in refused.json()["detail"]


def test_a_stream_ends_with_its_key(api: TestClient, keys: Keys, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "FRESH_S", 0)
    reader = bearer(keys.create("reader", ("read", "submit")))
    job = api.post("/v1/jobs", json=spec, headers=reader).headers["Location"]
    threading.Timer(1, lambda: keys.revoke("reader")).start()
    monkeypatch.setattr(events, "KEEP_ALIVE_S", 0.5)
    assert "queued" in api.get(f"{job}/events?stream=true", headers=reader).text, "and it comes to an end"


def test_before_the_keys_have_been_read_nobody_is_let_in() -> None:
    away = access.Callers(Keys(Database("postgresql+psycopg://sae@127.0.0.1:1/sae")), ())
    with pytest.raises(ServiceUnavailable):
        asyncio.run(away.by(None))
