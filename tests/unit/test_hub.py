"""What is said at submit of models on a hub, with a hub of our own."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from sae_service.settings import environment

ANSWERS = {
    "/org/there/resolve/main/config.json": (200, ""),
    "/org/gated/resolve/main/config.json": (403, "GatedRepo"),
    "/org/there/resolve/v9/config.json": (404, "RevisionNotFound"),
    "/org/other/resolve/main/config.json": (404, "EntryNotFound"),
    "/org/busy/resolve/main/config.json": (503, ""),
}
CHECK = """
import json, sys
from sae_service import preflight
from sae_service.errors import SAEServiceError
from sae_service.readable import Roots
from sae_service.spec import JobSpec

found = []
for job in json.load(sys.stdin):
    try:
        preflight.check(JobSpec.model_validate(job), Roots(()))
        found.append(None)
    except SAEServiceError as error:
        found.append(error.as_dict())
print(json.dumps(found))
"""
MODELS = [
    {"name": "org/there"}, {"name": "org/nope"}, {"name": "org/gated"}, {"name": "org/there", "revision": "v9"},
    {"name": "org/other"}, {"name": "org/busy"},
]  # fmt: skip


class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        status, code = ANSWERS.get(self.path, (404, "RepoNotFound"))
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def answers(spec: dict[str, Any], url: str) -> list[dict[str, Any] | None]:
    """What the submission of a job for each of the models is answered, in a process that may ask a hub at `url`."""
    jobs = [spec | {"stream": spec["stream"] | {"model": model, "dataset": {"path": "org/text"}}} for model in MODELS]
    asked = environment({}) | {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": "/nonexistent"}
    command = [sys.executable, "-c", CHECK]
    said = subprocess.run(command, input=json.dumps(jobs), env=asked, capture_output=True, text=True, check=True)
    return json.loads(said.stdout)


def test_a_model_that_a_hub_does_not_have_is_refused_at_submit(spec: dict[str, Any], hub: str) -> None:
    there, nope, gated, revision, other, busy = answers(spec, hub)
    assert there is None
    assert busy is None, "a hub in trouble is no reason to refuse"
    for error, text, param in (
        (nope, "has no model org/nope", "name"), (gated, "accepted its terms", "name"), (revision, "no revision v9", "revision"),
        (other, "has no config.json", "name"),
    ):  # fmt: skip
        assert error is not None
        assert error["code"] == "model_not_found"
        assert error["param"] == f"/stream/model/{param}"
        assert text in error["message"]


def test_a_hub_that_does_not_answer_is_no_reason_to_refuse(spec: dict[str, Any]) -> None:
    assert answers(spec, "http://127.0.0.1:9") == [None] * len(MODELS)
