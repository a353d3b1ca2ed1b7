"""Who may speak to the REST interface: without a key this machine's user only, not the web pages in that user's browser."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.access import needed
from api.app import create_app
from sae_service.settings import Settings

KEY = "sae_secret"
MISSING = ("unauthorized", "Bearer")
UNKNOWN = ("unknown_key", 'Bearer error="invalid_token"')


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[TestClient]:
    """The interface of a service with a key."""
    settings = Settings(data_dir=tmp_path, api_key_sha256=(hashlib.sha256(KEY.encode()).hexdigest(),))
    with TestClient(create_app(settings), "http://sae.example", raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]", "[::1]:8000"])
def test_without_a_key_this_machine_is_answered(api: TestClient, host: str) -> None:
    assert api.get("/v1/jobs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["attacker.example:8720", "localhost.attacker.example", "192.168.0.7", "", "localhost/docs?", "localhost@attacker.example"],
)
def test_without_a_key_a_foreign_host_is_refused(api: TestClient, host: str) -> None:
    for method, path in (("GET", "/v1/jobs"), ("POST", "/v1/jobs/job_1/cancel"), ("GET", "/v1/workers")):
        answer = api.request(method, path, headers={"Host": host})
        assert (answer.status_code, answer.json()["code"]) == (421, "misdirected_request")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://attacker.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_without_a_key_a_foreign_page_changes_nothing(api: TestClient, spec: dict[str, Any], headers: dict[str, str]) -> None:
    where = api.post("/v1/jobs", json=spec).headers["Location"]
    for method, path in (("POST", f"{where}/cancel"), ("POST", f"{where}/retry"), ("POST", "/v1/jobs"), ("DELETE", where)):
        answer = api.request(method, path, headers=headers | {"Content-Type": "text/plain"})
        assert (answer.status_code, answer.json()["code"]) == (403, "foreign_origin")
    assert api.get(where).json()["status"] == "queued"


def test_the_services_own_page_may_be_used(api: TestClient, spec: dict[str, Any]) -> None:
    headers = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}
    assert api.post("/v1/jobs", json=spec, headers=headers).status_code == 201


def test_with_a_key_the_service_may_have_any_name_and_any_page_with_the_key_may_use_it(
    guarded: TestClient, spec: dict[str, Any]
) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Origin": "http://pages.example"}
    assert guarded.post("/v1/jobs", json=spec, headers=headers).status_code == 201


@pytest.mark.parametrize(
    "header", [None, "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {hashlib.sha256(KEY.encode()).hexdigest()}"]
)
def test_with_a_key_set_only_its_holder_is_let_in(guarded: TestClient, header: str | None) -> None:
    refused = guarded.get("/v1/jobs", headers={} if header is None else {"Authorization": header})
    code, challenge = UNKNOWN if header and header.startswith("Bearer ") else MISSING
    assert (refused.status_code, refused.json()["code"], refused.headers["WWW-Authenticate"]) == (401, code, challenge)
    assert guarded.get("/v1/jobs", headers={"Authorization": f"bearer  {KEY}"}).status_code == 200


def test_health_and_the_description_are_open(guarded: TestClient) -> None:
    for path in ("/healthz", "/readyz", "/docs", "/openapi.json"):
        assert guarded.get(path).status_code == 200
    assert guarded.get("/v1/nothing").status_code == 401


def test_no_host_makes_a_path_an_open_one(guarded: TestClient) -> None:
    assert guarded.get("/v1/jobs", headers={"Host": "sae.example/docs?"}).status_code == 401


@pytest.mark.parametrize("content", [b"{", b"x" * (2 << 20), b"\xff"])
def test_without_the_key_nothing_of_a_body_is_looked_at(guarded: TestClient, content: bytes) -> None:
    for path in ("/v1/jobs", "/v1/jobs/job_1/fork"):
        assert guarded.post(path, content=content, headers={"Content-Type": "application/json"}).status_code == 401
        assert guarded.post(path, content=content).status_code == 401


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonp", "text/json"])
def test_a_body_that_is_not_json_is_refused_with_the_headers_name(api: TestClient, kind: str | None) -> None:
    answer = api.post("/v1/jobs", content=b"{}", headers={} if kind is None else {"Content-Type": kind})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
    assert "Content-Type: application/json" in answer.json()["detail"]


def test_json_may_have_a_character_set_and_an_action_needs_no_body(api: TestClient, spec: dict[str, Any]) -> None:
    assert api.post("/v1/jobs", content=b"{}", headers={"Content-Type": "Application/JSON; charset=utf-8"}).status_code == 422
    where = api.post("/v1/jobs", json=spec).headers["Location"]
    assert api.post(f"{where}/cancel", headers={"Content-Type": "text/plain"}).status_code == 200


def test_every_operation_needs_a_scope_that_fits_it(api: TestClient) -> None:
    found = {
        (method.upper(), path): needed(method.upper(), path.replace("{job_id}", "job_1"))
        for path, operations in api.get("/openapi.json").json()["paths"].items()
        for method in operations
    }
    job = "/v1/jobs/{job_id}"
    submits = {("POST", path) for path in ("/v1/jobs", f"{job}/extend", f"{job}/fork", f"{job}/retry")}
    submits.add(("POST", "/v1/saes/{sae_id}/explanations"))
    manages = {*(("POST", f"{job}/{action}") for action in ("cancel", "pause", "resume")), ("DELETE", job)}
    manages.add(("DELETE", "/v1/cache/{stream_id}"))
    assert {asked for asked, scope in found.items() if scope == "submit"} == submits
    assert {asked for asked, scope in found.items() if scope == "manage"} == manages
    assert {method for (method, _), scope in found.items() if scope == "read"} == {"GET"}
    assert needed("POST", "/v1/something/new") == needed("PATCH", "/v1/jobs") == "manage"


def test_the_description_says_that_a_key_may_be_asked_for(api: TestClient) -> None:
    description = api.get("/openapi.json").json()
    assert description["paths"]["/v1/jobs"]["post"]["security"] == [{"key": []}, {}]
    assert description["paths"]["/healthz"]["get"]["security"] == []
    assert description["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
