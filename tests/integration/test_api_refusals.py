"""What the REST interface refuses, with the field's path and before anything is queued."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.files import byte_range


def changed(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(spec: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        place: Any = spec
        for part in parents:
            place = place[int(part) if part.isdigit() else part]
        place[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "pointer", "text"),
    [
        (changed("stream.tokenz", 5), "/stream/tokenz", "did you mean 'tokens'?"),
        (changed("saes.0.architecture.bandwith", 0.1), "/saes/0/architecture/bandwith", "did you mean 'bandwidth'?"),
        (changed("saes.0.architecture.kind", "transcoder"), "/saes/0/architecture/kind", "jumprelu"),
        (changed("saes.0.architecture.d_sae", -4), "/saes/0/architecture/d_sae", "greater than 0"),
        (changed("saes.0.architecture.target_l0", 257), "/saes/0/architecture/target_l0", "at most d_sae"),
        (changed("saes.0.architecture", {"kind": "topk", "d_sae": 64, "k": 65}), "/saes/0/architecture/k", "at most d_sae"),
        (changed("saes.0.architecture", {"kind": "topk", "d_sae": 64, "k": 2.5}), "/saes/0/architecture/k", "whole"),
        (changed("saes.0.architecture.bandwidth", float("nan")), "/saes/0/architecture/bandwidth", "finite"),
        (changed("saes.1.optimizer", {"lr": float("inf")}), "/saes/1/optimizer/lr", "finite"),
        (changed("saes.1.name", "a"), "/saes/1/name", "unique"),
        (changed("saes.1.name", "../a"), "/saes/1/name", "letters"),
        (changed("saes", []), "/saes", "1 or more"),
        (changed("stream.tokens", -1), "/stream/tokens", "greater than 0"),
        (changed("stream.tokens", 100), "/stream/tokens", "at least batch"),
        (changed("stream.tokens", "many"), "/stream/tokens", "whole number"),
        (changed("stream.context_size", 129), "/stream/context_size", "128"),
        (changed("stream.model", {"name": "/etc"}), "/stream/model/name", "SAE_SERVICE_ALLOWED_ROOTS"),
        (changed("stream.dataset", {"path": "/etc/passwd"}), "/stream/dataset/path", "SAE_SERVICE_ALLOWED_ROOTS"),
        (changed("stream.dataset.column", "body"), "/stream/dataset/column", "text"),
        (changed("stream.dataset.split", "dev"), "/stream/dataset/split", "train"),
        (changed("saes.0.hook_name", "blocks.9.hook_resid_post"), "/saes/0/hook_name", "0 to 3"),
        (changed("saes.0.hook_name", "blocks.1.hook_resid_pots"), "/saes/0/hook_name", "blocks.1.hook_resid_post"),
        (changed("saes.0.hook_name", "blocks.1.attn.hook_pattern"), "/saes/0/hook_name", "vector"),
        (changed("saes.0.hook_name", "resid post"), "/saes/0/hook_name", "such as blocks.8.hook_resid_post"),
        (changed("metadata", {"a": 1}), "/metadata/a", "must be text"),
        (changed("stream.model.revision", "ma\0in"), "/stream/model/revision", "NUL"),
        (changed("stream.dataset.column", "te\0xt"), "/stream/dataset/column", "NUL"),
        (changed("saes.1.initial", {"path": "/saes/\0"}), "/saes/1/initial/path", "NUL"),
    ],
)
def test_what_cannot_run_is_refused_with_the_fields_path_and_leaves_nothing(
    api: TestClient, spec: dict[str, Any], change: Callable[[dict[str, Any]], None], pointer: str, text: str
) -> None:
    bad = copy.deepcopy(spec)
    change(bad)
    refused = api.post("/v1/jobs", content=json.dumps(bad), headers={"Content-Type": "application/json"})
    assert refused.status_code == 422, refused.text
    assert refused.headers["Content-Type"] == "application/problem+json"
    problem = refused.json()
    assert problem["errors"][0]["pointer"] == pointer
    assert text in problem["errors"][0]["detail"]
    assert problem["param"] == pointer
    assert problem["request_id"] == refused.headers["X-Request-ID"]
    assert api.get("/v1/jobs").json()["data"] == []


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        (changed("stream.model.name", "\ud800"), "/stream/model/name"),
        (changed("stream.dataset.column", "te\udfffxt"), "/stream/dataset/column"),
        (changed("stream.tokens", "\ud800"), "/stream/tokens"),
    ],
)
def test_half_a_character_is_refused_where_it_stands(
    api: TestClient, spec: dict[str, Any], change: Callable[[dict[str, Any]], None], pointer: str
) -> None:
    bad = copy.deepcopy(spec)
    change(bad)
    refused = api.post("/v1/jobs", content=json.dumps(bad), headers={"Content-Type": "application/json"})
    (error,) = refused.json()["errors"]
    assert (refused.status_code, error["pointer"]) == (422, pointer)
    assert "\\ud" in error["detail"]


def test_one_mistake_is_one_error(api: TestClient, spec: dict[str, Any]) -> None:
    spec["saes"] = [spec["saes"][0] | {"architecture": {"kind": "topk", "d_sae": 64, "k": 100}}]
    problem = api.post("/v1/jobs", json=spec).json()
    assert problem["errors"] == [{"pointer": "/saes/0/architecture/k", "detail": "must be at most d_sae (64)"}]
    assert problem["detail"] == "/saes/0/architecture/k: must be at most d_sae (64)"


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b"[]", "The body must be a mapping of names to values, not a list."),
        (b'"job"', 'The body must be a mapping of names to values, not "job".'),
        (b"", "The body is missing."),
    ],
)
def test_a_body_that_is_no_job_is_said_to_be_none(api: TestClient, content: bytes, detail: str) -> None:
    answer = api.post("/v1/jobs", content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["detail"]) == (422, detail)


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("limit=many", 'limit: must be a whole number, not "many"'),
        ("limit=101", "limit: must be at most 100"),
        ("order=up", "order: must be 'asc' or 'desc'"),
    ],
)
def test_a_parameter_is_refused_in_the_same_words(api: TestClient, query: str, detail: str) -> None:
    answer = api.get(f"/v1/jobs?{query}")
    assert (answer.status_code, answer.json()["detail"]) == (400, detail)


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "code"),
    [
        ("GET", "/v1/jobs/job_nothing", None, 404, "not_found"),
        ("POST", "/v1/jobs/job_nothing/cancel", None, 404, "not_found"),
        ("GET", "/v1/jobs/job_nothing/events", None, 404, "not_found"),
        ("GET", "/v1/jobs/job_nothing/metrics", None, 404, "not_found"),
        ("GET", "/v1/jobs/job_nothing/checkpoints", None, 404, "not_found"),
        ("GET", "/v1/nothing", None, 404, "not_found"),
        ("DELETE", "/v1/jobs", None, 405, "method_not_allowed"),
        ("POST", "/v1/jobs", b"{", 400, "malformed_json"),
        ("POST", "/v1/jobs", b"[]", 422, "invalid_spec"),
        ("POST", "/v1/jobs", b"", 422, "invalid_spec"),
        ("POST", "/v1/jobs", b"[" * 100_000, 400, "malformed_json"),
        ("POST", "/v1/jobs", b'{"a": "\xff"}', 400, "malformed_json"),
        ("POST", "/v1/jobs", b"1" * 5000, 400, "malformed_json"),
        ("POST", "/v1/jobs", b'"' + b"x" * (1 << 20) + b'"', 413, "too_large"),
        ("POST", "/v1/jobs", iter([b"{", b"}"]), 411, "length_required"),
    ],
)
def test_every_error_is_a_problem_document(
    api: TestClient, method: str, path: str, content: bytes | None, status: int, code: str
) -> None:
    answer = api.request(method, path, content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["X-Request-ID"].startswith("req_")


@pytest.mark.parametrize(
    "path",
    ["/v1/jobs/%00", "/v1/jobs?after=%00", "/v1/jobs?metadata[a]=%00", '/v1/jobs?metadata[a"b]=1',
     "/v1/jobs/JOB/metrics?after_step=99999999999999999999", "/v1/jobs/JOB/events?after=99999999999999999999"],
)  # fmt: skip
def test_what_no_database_can_look_for_is_a_bad_request(api: TestClient, spec: dict[str, Any], path: str) -> None:
    job = api.post("/v1/jobs", json=spec).json()
    assert api.get(path.replace("JOB", job["id"])).status_code == 400


@pytest.mark.parametrize("metadata", [{"a": "x\0y"}, {"x\0y": "a"}, {'x"y': "a"}])
def test_labels_that_no_database_can_look_for_are_refused(api: TestClient, spec: dict[str, Any], metadata: dict[str, str]) -> None:
    answer = api.post("/v1/jobs", json=spec | {"metadata": metadata})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"].split("/")[1]) == (422, "metadata")


@pytest.mark.parametrize("header", ["bytes=" + "0" * 5000 + "-", "bytes=-" + "9" * 5000])
def test_a_range_of_absurd_length_is_ignored(header: str) -> None:
    assert byte_range(header, 10) is None


@pytest.mark.parametrize(
    ("name", "content"),
    [("README.md", "---\n: : [\n---\n"), ("dataset_infos.json", "[1]"), ("train.jsonl.zip", "no archive")],
)
def test_whatever_lies_in_a_folder_of_text_is_no_bug(
    api: TestClient, spec: dict[str, Any], tmp_path: Path, name: str, content: str
) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    if name != "train.jsonl.zip":
        (folder / "train.jsonl").write_text('{"text": "a"}\n')
    (folder / name).write_text(content)
    spec["stream"]["dataset"] = {"path": str(folder)}
    answer = api.post("/v1/jobs", json=spec)
    assert (answer.status_code, answer.json()["param"]) == (422, "/stream/dataset/path")
