"""Files that take for ever, or all memory, do not stop the API."""

import lzma
import os
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from fastapi.testclient import TestClient

from api import jobs
from api.apart import Apart, TooLong
from sae_service.errors import InvalidSpec, ServiceUnavailable
from tests.conftest import DEMO


def run(apart: Apart, limit_s: float, function: Any, *arguments: Any) -> Any:
    return anyio.run(apart.run, limit_s, function, *arguments)


def test_what_a_process_returns_or_raises_is_passed_on() -> None:
    apart = Apart(at_once=1)
    assert run(apart, 60, divmod, 7, 2) == (3, 1)
    with pytest.raises(InvalidSpec) as caught:
        run(apart, 60, _refuse)
    assert (caught.value.param, caught.value.hint) == ("/field", "do this")
    with pytest.raises(ZeroDivisionError) as bug:
        run(apart, 60, divmod, 7, 0)
    assert "_carry_out" in bug.value.__notes__[0]


def _refuse() -> None:
    raise InvalidSpec("wrong", "/field", "do this")


def test_a_process_that_takes_too_long_is_ended() -> None:
    began = time.monotonic()
    with pytest.raises(TooLong):
        run(Apart(at_once=1), 1, time.sleep, 600)
    assert time.monotonic() - began < 30


def test_a_process_that_is_ended_from_outside_is_an_error_that_passes() -> None:
    with pytest.raises(ServiceUnavailable, match="ended from outside"):
        run(Apart(at_once=1), 60, os.abort)


def test_those_that_wait_for_others_for_too_long_are_told_so() -> None:
    async def both() -> None:
        apart = Apart(at_once=1)
        async with anyio.create_task_group() as group:
            group.start_soon(apart.run, 60, time.sleep, 2)
            await anyio.sleep(0.5)
            with pytest.raises(ServiceUnavailable, match="busy"):
                await apart.run(0.2, time.sleep, 0)

    anyio.run(both)


def test_a_pipe_in_place_of_a_file_is_refused_at_once(api: TestClient, spec: dict[str, Any], tmp_path: Path) -> None:
    for kind, name in (("model", "config.json"), ("model", "tokenizer.json"), ("dataset", "train.jsonl")):
        folder = tmp_path / f"{kind}-{name}"
        folder.mkdir()
        if kind == "model":
            for file in (DEMO / "model").iterdir():
                (folder / file.name).symlink_to(file)
            (folder / name).unlink()
        os.mkfifo(folder / name)
        spec["stream"] |= {kind: {"name": str(folder)} if kind == "model" else {"path": str(folder / name)}}
        answer = api.post("/v1/jobs", json=spec)
        assert answer.status_code == 422
        assert "regular file" in answer.json()["detail"], answer.text
        spec["stream"]["model"] = {"name": str(DEMO / "model")}


def test_a_look_that_takes_too_long_is_a_refusal_and_others_are_served(
    api: TestClient, spec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "LOOK_S", 0.001)
    answer = api.post("/v1/jobs", json=spec)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_spec")
    assert "could not be looked at" in answer.json()["detail"]
    assert api.get("/v1/jobs").json()["data"] == []


@pytest.mark.parametrize("content", [b"\n" * (20 << 20), b"x" * (20 << 20)], ids=["lines", "one line"])
def test_a_small_file_that_unpacks_into_a_large_one_is_answered_soon(
    api: TestClient, spec: dict[str, Any], tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "bomb.jsonl.xz").write_bytes(lzma.compress(content, preset=0))
    spec["stream"]["dataset"] = {"path": str(tmp_path / "bomb.jsonl.xz")}
    began = time.monotonic()
    answer = api.post("/v1/jobs", json=spec)
    # A long first line is left to the training process.
    assert answer.status_code == (422 if content[:1] == b"\n" else 201), answer.text
    assert time.monotonic() - began < 30
