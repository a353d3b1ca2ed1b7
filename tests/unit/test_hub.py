"""What is said of models and datasets on a hub, with a hub of our own."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sae_service.hub import wait_for
from sae_service.settings import environment

ANSWERS = {
    "/org/there/resolve/main/config.json": (200, ""),
    "/org/gated/resolve/main/config.json": (403, "GatedRepo"),
    "/org/there/resolve/v9/config.json": (404, "RevisionNotFound"),
    "/org/other/resolve/main/config.json": (404, "EntryNotFound"),
    "/org/busy/resolve/main/config.json": (503, ""),
    "/datasets/org/text/resolve/main/README.md": (200, ""),
    "/datasets/org/bare/resolve/main/README.md": (404, "EntryNotFound"),
    "/datasets/org/gated/resolve/main/README.md": (403, "GatedRepo"),
    "/datasets/org/text/resolve/v9/README.md": (404, "RevisionNotFound"),
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
DATASETS = [
    {"path": "org/text"}, {"path": "org/bare"}, {"path": "org/nope"}, {"path": "org/gated"},
    {"path": "org/text", "revision": "v9"},
]  # fmt: skip
OPEN = """
import sys
from sae_service import hub
from sae_service.activations.text import open_text
from sae_service.errors import DataNotFound
from sae_service.spec import DatasetSpec

hub.PATIENCE_S = 5
try:
    open_text(DatasetSpec(path="org/text"), "train")
except DataNotFound as error:
    print(error)
"""


COMMITS = {
    "/api/models/org/there": 40 * "a", "/api/models/org/there/revision/v1": 40 * "b", "/api/datasets/org/text": 40 * "c",
}  # fmt: skip
PIN = """
import json, sys
from sae_service.hub import pinned
from sae_service.spec import StreamSpec

for model, dataset in json.load(sys.stdin):
    found = pinned(StreamSpec(model=model, dataset=dataset, tokens=8192))
    print(json.dumps([found.model.revision, found.dataset.revision]))
"""


class Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        commit = COMMITS.get(self.path)
        content = json.dumps({"id": "org/name", "sha": commit}).encode()
        self.send_response(404 if commit is None else 200)
        if commit is None:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

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


def asking(url: str) -> dict[str, str]:
    """The environment of a process that may ask a hub at `url`."""
    return environment({}) | {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": "/nonexistent"}


def answers(spec: dict[str, Any], url: str, models: list[Any], datasets: list[Any]) -> list[dict[str, Any] | None]:
    """What the submission of a job for each model with each dataset is answered."""
    sources = [{"model": model, "dataset": dataset} for model in models for dataset in datasets]
    jobs = json.dumps([spec | {"stream": spec["stream"] | source} for source in sources])
    said = subprocess.run([sys.executable, "-c", CHECK], input=jobs, env=asking(url), capture_output=True, text=True, check=True)
    return json.loads(said.stdout)


def test_a_model_that_a_hub_does_not_have_is_refused_at_submit(spec: dict[str, Any], hub: str) -> None:
    there, nope, gated, revision, other, busy = answers(spec, hub, MODELS, DATASETS[:1])
    assert there is None
    assert busy is None, "a hub in trouble is no reason to refuse"
    for error, text, param in (
        (nope, "has no model org/nope", "name"), (gated, "accepted its terms", "name"), (revision, "no revision v9", "revision"),
        (other, "has no config.json", "name"),
    ):  # fmt: skip
        assert error is not None
        assert (error["code"], error["param"]) == ("model_not_found", f"/stream/model/{param}")
        assert text in error["message"]


def test_a_dataset_that_a_hub_does_not_have_is_refused_at_submit(spec: dict[str, Any], hub: str) -> None:
    there, bare, nope, gated, revision = answers(spec, hub, MODELS[:1], DATASETS)
    assert (there, bare) == (None, None), "not every dataset has a README"
    for error, text, param in (
        (nope, "has no dataset org/nope", "path"), (gated, "accepted its terms", "path"), (revision, "no revision v9", "revision"),
    ):  # fmt: skip
        assert error is not None
        assert (error["code"], error["param"]) == ("data_not_found", f"/stream/dataset/{param}")
        assert text in error["message"]


def test_a_hub_that_does_not_answer_is_no_reason_to_refuse(spec: dict[str, Any]) -> None:
    assert answers(spec, "http://127.0.0.1:9", MODELS, DATASETS[:1]) == [None] * len(MODELS)


def test_the_training_process_waits_for_a_silent_hub_for_seconds_only() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        said = subprocess.run([sys.executable, "-c", OPEN], env=asking(url), capture_output=True, text=True, check=True)
        took = time.monotonic() - began
    assert said.stdout.startswith("/stream/dataset/path: org/text cannot be read: 127.0.0.1:")
    assert "does not say whether it has org/text" in said.stdout
    assert took < 45, "with the imports, on a busy machine; asked by the library itself it takes minutes"


def test_a_hub_that_stumbles_is_asked_again_and_one_that_has_answered_is_asked_no_more() -> None:
    asked: list[str] = []

    def check(name: str, revision: str | None) -> None:
        asked.append(name)
        if len(asked) == 1:
            raise ConnectionError("503")

    for _ in range(3):
        wait_for(check, "org/text", None)
    assert asked == ["org/text", "org/text"]


def pins(environment: dict[str, str], *sources: tuple[dict[str, Any], dict[str, Any]]) -> list[list[str | None]]:
    """The revisions at which models and datasets are read."""
    command = [sys.executable, "-c", PIN]
    told = subprocess.run(command, input=json.dumps(sources), env=environment, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in told.stdout.splitlines()]


@pytest.fixture
def here(tmp_path: Path) -> dict[str, str]:
    """The environment of a process with a commit of org/there and of org/left on its machine."""
    for name, commit in (("there", 40 * "d"), ("left", 40 * "e")):
        folder = tmp_path / f"models--org--{name}"
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "snapshots" / commit / "config.json").write_text("{}")
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(commit)
    return {"HF_HUB_CACHE": str(tmp_path)}


def test_a_revision_is_the_commit_that_the_hub_says_or_else_the_one_that_is_here(hub: str, here: dict[str, str]) -> None:
    text, commit = {"path": "org/text"}, 40 * "f"
    assert pins(
        asking(hub) | here,
        ({"name": "org/there"}, text),
        ({"name": "org/there", "revision": "v1"}, {"path": "org/nope"}),
        ({"name": "org/left"}, text | {"revision": commit}),
        ({"name": "org/nope", "revision": commit}, {"path": "./text"}),
        ({"name": "./model"}, {"path": "/text"}),
    ) == [[40 * "a", 40 * "c"], [40 * "b", None], [40 * "e", commit], [commit, None], [None, None]]


def test_without_a_hub_a_revision_is_the_commit_that_is_here(here: dict[str, str]) -> None:
    sources = ({"name": "org/there"}, {"path": "./text"}), ({"name": "org/nope", "revision": "v1"}, {"path": "./text"})
    silent = asking("http://127.0.0.1:9") | here
    offline = silent | {"HF_HUB_OFFLINE": "1"}
    assert pins(silent, sources[0]) == [[40 * "d", None]]
    assert pins(offline, *sources) == [[40 * "d", None], ["v1", None]]
