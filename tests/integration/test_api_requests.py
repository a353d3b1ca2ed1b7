"""What all answers have in common, and what is refused about the form of a request."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from api.files import byte_range
from sae_service.errors import ServiceUnavailable
from sae_service.jobs.store import JobStore
from sae_service.settings import Settings

FIELDS = {"type", "title", "status", "detail", "instance", "code", "param", "request_id", "errors"}
JSON = {"Content-Type": "application/json"}


def check_headers(answer: Any) -> None:
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; ")
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert answer.headers["X-Request-ID"].startswith("req_")
    assert "Server" not in answer.headers


@pytest.mark.parametrize(
    ("method", "path", "headers", "content", "status"),
    [
        ("GET", "/healthz", {}, None, 200),
        ("GET", "/docs", {}, None, 200),
        ("GET", "/v1/jobs", {"Host": "attacker.example"}, None, 421),
        ("POST", "/v1/jobs", {"Origin": "null"}, None, 403),
        ("POST", "/v1/jobs", JSON, b"{", 400),
        ("POST", "/v1/jobs", JSON, iter([b"{}"]), 411),
        ("POST", "/v1/jobs", JSON, b"x" * (2 << 20), 413),
        ("POST", "/v1/jobs", {}, b"{}", 415),
        ("POST", "/v1/jobs", JSON, b"{}", 422),
        ("GET", "/v1/jobs?after=%00", {}, None, 400),
        ("PUT", "/v1/jobs", {}, None, 405),
        ("GET", "/", {}, None, 404),
    ],
)
def test_every_answer_has_its_headers_and_every_error_is_a_whole_problem(
    api: TestClient, method: str, path: str, headers: dict[str, str], content: Any, status: int
) -> None:
    answer = api.request(method, path, headers=headers, content=content)
    assert answer.status_code == status, answer.text
    check_headers(answer)
    if status >= 400:
        problem = answer.json()
        assert set(problem) == FIELDS
        assert (problem["status"], problem["instance"]) == (status, path.partition("?")[0])
        assert problem["request_id"] == answer.headers["X-Request-ID"]
        assert problem["type"] == f"urn:sae-service:problem:{problem['code']}"
        assert answer.headers["Content-Type"] == "application/problem+json"


def test_the_answer_to_a_bug_has_them_too_and_the_log_its_number(
    api: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(JobStore, "get", broken)
    answer = api.get("/v1/jobs/job_1")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    check_headers(answer)
    assert answer.headers["X-Request-ID"] in caplog.text


def test_a_refusal_of_the_key_has_them_too(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, api_key_sha256=(hashlib.sha256(b"key").hexdigest(),))
    with TestClient(create_app(settings), "http://sae.example") as api:
        answer = api.post("/v1/jobs", content=b"{", headers=JSON)
    assert (answer.status_code, set(answer.json())) == (401, FIELDS)
    check_headers(answer)


def test_what_is_private_is_not_kept_but_what_can_be_asked_about_again(api: TestClient, spec: dict[str, Any]) -> None:
    where = api.post("/v1/jobs", json=spec).headers["Location"]
    assert api.get("/v1/jobs").headers["Cache-Control"] == "no-store"
    one = api.get(where)
    assert one.headers["Cache-Control"] == "private, no-cache"
    assert api.get(where, headers={"If-None-Match": one.headers["ETag"]}).status_code == 304


def test_the_description_is_shown_from_files_of_this_installation(api: TestClient) -> None:
    page = api.get("/docs")
    policy = page.headers["Content-Security-Policy"]
    assert "script-src 'self';" in policy
    assert "//" not in policy
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(addresses) == 4
    for address in addresses:
        file = api.get(f"/{address}")
        assert file.status_code == 200, address
        assert file.headers["Content-Type"].partition(";")[0] in ("text/css", "image/png", "text/javascript")
    assert "http" not in page.text + api.get("/docs/start.js").text
    assert api.get("/redoc").status_code == 404


@pytest.mark.parametrize(
    ("path", "name", "text"),
    [
        ("/v1/jobs?stauts=running", "stauts", "'status'"),
        ("/v1/jobs?metdata[a]=1", "metdata[a]", "metadata"),
        ("/v1/jobs?metadata=1", "metadata", "metadata[name]"),
        ("/v1/jobs/job_1?verbose=1", "verbose", "none"),
        ("/v1/jobs/job_1/metrics?saes=a", "saes", "'sae'"),
        ("/v1/jobs/job_1/events?strean=true", "strean", "'stream'"),
        ("/v1/architectures?limit=1", "limit", "none"),
    ],
)
def test_a_parameter_that_is_not_known_is_refused_and_the_near_one_named(
    api: TestClient, path: str, name: str, text: str
) -> None:
    problem = api.get(path).json()
    assert (problem["status"], problem["code"], problem["param"]) == (400, "invalid_request", name)
    assert text in problem["detail"]


def test_labels_are_described_as_a_parameter(api: TestClient) -> None:
    parameters = api.get("/openapi.json").json()["paths"]["/v1/jobs"]["get"]["parameters"]
    assert {"limit", "metadata"} <= {parameter["name"] for parameter in parameters}
    assert api.get("/v1/jobs?metadata[a]=1").status_code == 200


@pytest.mark.parametrize("path", ["/v1/jobs/", "/v1/workers/", "/v1/jobs/job_1/events/"])
def test_a_slash_too_many_leads_nowhere_else(api: TestClient, path: str) -> None:
    answer = api.get(path, follow_redirects=False)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert "Location" not in answer.headers


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("DELETE", "/v1/jobs", "GET, POST"), ("POST", "/v1/jobs/job_1", "GET, DELETE"), ("GET", "/v1/jobs/job_1/cancel", "POST"),
     ("POST", "/v1/jobs/j/checkpoints/c/files/a/b", "GET, HEAD")],
)  # fmt: skip
def test_a_method_that_is_not_there_is_answered_with_all_that_are(
    api: TestClient, method: str, path: str, allowed: str
) -> None:
    answer = api.request(method, path)
    assert (answer.status_code, answer.headers["Allow"]) == (405, allowed)


def test_a_long_address_is_not_repeated(api: TestClient) -> None:
    for path in ("/" + "x" * 60_000, "/v1/jobs/" + "x" * 60_000, "/v1/jobs?" + "x" * 60_000 + "=1"):
        answer = api.get(path)
        assert answer.status_code in (400, 404)
        assert len(answer.content) < 2000


@pytest.mark.parametrize("key", ["", '""', "  "])
def test_an_empty_idempotency_key_is_refused(api: TestClient, spec: dict[str, Any], key: str) -> None:
    answer = api.post("/v1/jobs", json=spec, headers={"Idempotency-Key": key})
    assert (answer.status_code, answer.json()["param"]) == (400, "Idempotency-Key")


def test_an_idempotency_key_that_was_used_for_another_request_has_a_code_of_its_own(
    api: TestClient, spec: dict[str, Any]
) -> None:
    headers = {"Idempotency-Key": "once"}
    where = api.post("/v1/jobs", json=spec, headers=headers).headers["Location"]
    for path, body in (("/v1/jobs", spec | {"priority": 5}), (f"{where}/retry", None), (f"{where}/fork", {})):
        answer = api.post(path, json=body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")


def test_a_range_that_ends_beyond_the_file_ends_with_it() -> None:
    assert byte_range("bytes=0-99999999999999999999", 10) == (0, 10)
    assert byte_range("bytes=-99999999999999999999", 10) == (0, 10)
    assert byte_range("bytes=99999999999999999999-", 10) == (99999999999999999999, 10)


def test_who_asks_whether_it_is_ready_does_not_hear_where_the_database_is(
    api: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*arguments: Any, **named: Any) -> None:
        raise ServiceUnavailable('connection to server at "10.1.2.3", port 5432 failed')

    monkeypatch.setattr(JobStore, "check", away)
    answer = api.get("/readyz")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert "10.1.2.3" not in answer.text


def test_the_description_refers_to_nothing_that_it_lacks(api: TestClient) -> None:
    document = api.get("/openapi.json").json()
    references = set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document)))
    assert references
    for reference in references:
        part = document
        for name in reference.split("/"):
            part = part[name]


def test_the_document_says_what_a_repeated_request_is_answered(api: TestClient) -> None:
    paths = api.get("/openapi.json").json()["paths"]
    posts = {path: found["post"]["responses"] for path, found in paths.items() if "post" in found}
    makes = {path: answers for path, answers in posts.items() if "201" in answers and path.startswith("/v1/jobs")}
    assert set(makes) == {"/v1/jobs", *(f"/v1/jobs/{{job_id}}/{name}" for name in ("extend", "fork", "retry"))}
    assert all("Idempotency-Key" in found["200"]["description"] for found in makes.values())
