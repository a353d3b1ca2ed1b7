"""Whatever is posted as a job is answered: 201, or a problem that points to the field, soon and never with a 5xx."""

import json
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from api.app import create_app
from sae_service.settings import Settings

SOON_S = 1.0
WITHIN_A_TEST = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
numbers = st.integers() | st.floats() | st.sampled_from([0, -1, 1 << 31, 1 << 53, 1 << 63, 1 << 64, 10**40, 1e308])
words = st.text() | st.sampled_from(["", ".", "..", "/", "~", "a/../b", "json", "file:///x", "\0", "\ud800", "hook_z", "é" * 300])
values = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    yield path
    if isinstance(value, dict | list):
        for part, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, part))


def with_value(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    changed = deepcopy(value)
    inner = changed
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = new
    return changed


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"))
    with TestClient(create_app(settings), base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def whole(service: TestClient, request: pytest.FixtureRequest) -> dict[str, Any]:
    """A job with every field, as the service fills them in."""
    demo = Path(__file__).parents[2] / "sae_service" / "demo"
    job = {
        "stream": {
            "model": {"name": str(demo / "model")},
            "dataset": {"path": str(demo / "text"), "held_out_split": "test"},
            "tokens": 4096, "batch": 256,
        },
        "saes": [
            {"hook_name": "blocks.1.hook_resid_post", "architecture": {"kind": kind, "d_sae": 256}}
            for kind in ("topk", "jumprelu", "standard")
        ],
        "metadata": {"a": "b"},
    }  # fmt: skip
    answer = service.post("/v1/jobs", json=job)
    assert answer.status_code == 201, answer.text
    return answer.json()["spec"]


def check(service: TestClient, body: bytes) -> None:
    __tracebackhide__ = True
    began = time.perf_counter()
    answer = service.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    took = time.perf_counter() - began
    assert answer.status_code in (201, 400, 413, 422), answer.text
    assert took < SOON_S, (took, body[:500])
    if answer.status_code == 422:
        problem = answer.json()
        assert problem["errors"], problem
        assert all(error["detail"] for error in problem["errors"])
        assert all(error["pointer"].startswith("/") or error["pointer"] == "" for error in problem["errors"])
    if answer.status_code == 201:
        assert service.get(answer.headers["Location"]).status_code == 200
        assert service.get("/v1/jobs?limit=1").status_code == 200


@settings(max_examples=200, deadline=None, suppress_health_check=WITHIN_A_TEST)
@given(data=st.data())
def test_a_job_with_any_value_at_any_place(service: TestClient, whole: dict[str, Any], data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(list(places(whole))))
    body = with_value(whole, path, data.draw(values))
    check(service, json.dumps(body, ensure_ascii=data.draw(st.booleans())).encode(errors="surrogatepass"))


@settings(max_examples=100, deadline=None, suppress_health_check=WITHIN_A_TEST)
@given(body=values.map(lambda value: json.dumps(value).encode()) | st.binary())
@example(b'{"stream": ' * 500)
@example(b"[" * 100_000)
@example(b'{"stream": ' * 900 + b"1" + b"}" * 900)
@example(b'{"saes": [' + b"1," * 100_000 + b"1]}")
@example(b'{"metadata": {' + b",".join(b'"%d": ""' % n for n in range(50_000)) + b"}}")
@example(b'{"n": ' + b"9" * 5000 + b"}")
def test_any_json_and_any_bytes(service: TestClient, body: bytes) -> None:
    check(service, body)
