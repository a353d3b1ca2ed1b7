"""A line in the log for each request to a running API."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service import free_port

ROOT = Path(__file__).parents[2]
JOB = {
    "stream": {"synthetic": {"n_features": 32, "d_in": 16}, "tokens": 4096, "batch": 64},
    "saes": [{"hook_name": "hook_synthetic", "architecture": {"kind": "topk", "d_sae": 32, "k": 4}}],
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[httpx.Response], list[dict[str, Any]]]:
    """The answers of an API to some requests, and all that it has logged."""
    folder, port = tmp_path_factory.mktemp("api"), free_port()
    settings = {"DATA_DIR": str(folder), "LOG_FORMAT": "json", "LOG_LEVEL": "debug"}
    environment = {f"SAE_SERVICE_{name}": value for name, value in settings.items()} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "api", "--port", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            until_it_answers(client)
            answers = [
                client.get("/v1/jobs/job_1?token=hidden"),
                client.get("/v1/jobs", headers={"X-Request-ID": "from-a-client_1"}),
                client.get("/v1/jobs", headers={"X-Request-ID": "with a space"}),
                client.get("/v1/jobs", headers={"X-Request-ID": "x" * 65}),
                client.get("/a%0Aline%20of%20its%20own"),
                client.post("/v1/jobs", json=JOB),
            ]
    finally:
        process.terminate()
        process.wait(30)
    return answers, [json.loads(line) for line in (folder / "log").read_text().splitlines()]


def until_it_answers(client: httpx.Client) -> None:
    before = time.monotonic() + 60
    while True:
        try:
            client.get("/healthz")
            return
        except httpx.TransportError:
            assert time.monotonic() < before
            time.sleep(0.2)


Told = tuple[list[httpx.Response], list[dict[str, Any]]]


def test_the_log_has_one_line_for_each_request_and_nothing_else(told: Told) -> None:
    answers, lines = told
    assert {line["message"] for line in lines} == {"request"}
    by_id = {line["request_id"]: line for line in lines}
    for answer in answers:
        line = by_id[answer.headers["X-Request-ID"]]
        path = answer.request.url.raw_path.decode().split("?")[0]
        assert (line["method"], line["path"], line["status"]) == (answer.request.method, path, answer.status_code)
        assert line["duration_ms"] > 0


def test_requests_that_only_look_and_find_are_for_those_who_look_for_them(told: Told) -> None:
    levels = {(line["method"], line["status"]): line["level"] for line in told[1]}
    expected = {("GET", 200): "debug", ("GET", 400): "info", ("GET", 404): "info", ("POST", 201): "info"}
    assert {key: levels[key] for key in expected} == expected


def test_the_log_has_no_query(told: Told) -> None:
    assert "hidden" not in json.dumps(told[1])


def test_a_clients_own_request_id_is_kept_if_it_is_short_and_harmless(told: Told) -> None:
    _, kept, *others = (answer.headers["X-Request-ID"] for answer in told[0][:4])
    assert kept == "from-a-client_1"
    assert all(other.startswith("req_") for other in others)
