"""The activation cache over REST, from Python and on the command line: what is in it, and its deletion."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result
from fastapi.testclient import TestClient
from rich.console import Console
from typer.testing import CliRunner

from api import access
from api.app import create_app
from sae_service import text_tables
from sae_service.cli import app
from sae_service.client import Client
from sae_service.errors import NotFound
from sae_service.jobs.keys import Keys
from sae_service.settings import Settings
from sae_service.storage.cache import ActivationCache
from sae_service.storage.objects import Storage
from tests.served import served

STREAMS = tuple(f"{number:032x}" for number in range(1, 4))


def fill(settings: Settings, project: str | None = None, streams: tuple[str, ...] = STREAMS) -> None:
    """Streams of which each is a second newer than the one before."""
    for created_at, stream in enumerate(streams, 1_000_000):
        storage = Storage(settings.resolved_cache_url())
        cache = ActivationCache(storage, settings.cache_bytes, project, lambda created_at=created_at: created_at)
        cache.mark(stream, {"model": "./model", "dataset": "./text"})
        cache.put(f"{stream}/blocks.1.hook_resid_post/float32", "0.0.0.0-0.0.0.4", b"rows")


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_the_streams_are_listed_newest_first_in_parts(api: TestClient, settings: Settings) -> None:
    assert api.get("/v1/cache").json() == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    fill(settings)
    first = api.get("/v1/cache", params={"limit": 2}).json()
    assert ([stream["id"] for stream in first["data"]], first["has_more"]) == ([STREAMS[2], STREAMS[1]], True)
    rest = api.get("/v1/cache", params={"after": first["last_id"]}).json()
    (last,) = rest["data"]
    assert rest["has_more"] is False
    assert last.pop("n_bytes") > 4
    assert last == {
        "id": STREAMS[0], "object": "cached_stream", "model": "./model", "dataset": "./text", "project": None,
        "hook_names": ["blocks.1.hook_resid_post"], "created_at": 1_000_000, "used_at": 1_000_000,
    }  # fmt: skip


def test_what_is_not_there_is_refused(api: TestClient, settings: Settings) -> None:
    fill(settings)
    unknown = api.get("/v1/cache", params={"after": "f" * 32})
    assert (unknown.status_code, unknown.json()["code"]) == (400, "unknown_cursor")
    for stream in ("f" * 32, "stream.json", "..%2F..", STREAMS[0][:8]):
        assert api.delete(f"/v1/cache/{stream}").status_code == 404
    assert len(api.get("/v1/cache").json()["data"]) == 3


def test_a_deleted_stream_is_gone_with_its_files(api: TestClient, settings: Settings) -> None:
    fill(settings)
    assert api.delete(f"/v1/cache/{STREAMS[1]}").status_code == 204
    assert api.delete(f"/v1/cache/{STREAMS[1]}").status_code == 404
    assert [stream["id"] for stream in api.get("/v1/cache").json()["data"]] == [STREAMS[2], STREAMS[0]]
    folder = settings.data_dir / "storage" / "cache"
    assert sorted(path.name for path in folder.iterdir()) == [STREAMS[0], STREAMS[2]]


def test_whoever_may_only_read_deletes_nothing(api: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "FRESH_S", 0.0)
    fill(settings)
    keys = Keys.at(settings.resolved_database_url())
    reads, manages = keys.create("looks", ("read", "submit"), "default", None), keys.create("runs", ("manage",), "default", None)
    assert api.get("/v1/cache", headers=bearer(reads)).status_code == 200
    assert api.delete(f"/v1/cache/{STREAMS[0]}", headers=bearer(reads)).status_code == 403
    assert api.delete(f"/v1/cache/{STREAMS[0]}", headers=bearer(manages)).status_code == 204


def test_with_projects_a_key_sees_and_deletes_its_projects_streams_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "FRESH_S", 0.0)
    settings = Settings(data_dir=tmp_path, projects=True)
    keys = Keys.at(settings.resolved_database_url())
    with TestClient(create_app(settings), "http://sae.example", raise_server_exceptions=False) as api:
        ours, theirs = (bearer(keys.create(name, ("read", "manage"), name, None)) for name in ("ours", "theirs"))
        fill(settings, "ours", STREAMS[:1])
        fill(settings, "theirs", STREAMS[1:2])
        fill(settings, None, STREAMS[2:])
        assert [stream["id"] for stream in api.get("/v1/cache", headers=ours).json()["data"]] == [STREAMS[0]]
        assert api.delete(f"/v1/cache/{STREAMS[1]}", headers=ours).status_code == 404
        assert api.delete(f"/v1/cache/{STREAMS[1]}", headers=theirs).status_code == 204


@pytest.fixture
def running(settings: Settings) -> Iterator[tuple[Client, Callable[..., Result]]]:
    """A client of a service, and its command line."""
    with served(settings) as address:
        yield Client(address), lambda *words: CliRunner().invoke(app, ["cache", *words, "--url", address])


def test_the_client_and_the_command_line_list_and_delete(
    running: tuple[Client, Callable[..., Result]], settings: Settings
) -> None:
    client, run = running
    fill(settings)
    assert [stream.id for stream in client.cached_streams()] == list(reversed(STREAMS))
    assert [stream["id"] for stream in json.loads(run("list", "--json").stdout)] == list(reversed(STREAMS))
    shown = run("list").stdout
    assert all(word in shown for word in (*STREAMS, "./model", "./text", "blocks.1.hook_resid_post"))
    client.delete_cached_stream(STREAMS[0])
    with pytest.raises(NotFound):
        client.delete_cached_stream(STREAMS[0])
    assert run("delete", STREAMS[0]).exit_code == 3
    assert run("delete", *STREAMS[1:]).stdout.splitlines() == [f"deleted {stream}" for stream in STREAMS[1:]]
    assert client.cached_streams() == []


def test_a_stream_is_deleted_by_a_part_of_its_id(running: tuple[Client, Callable[..., Result]], settings: Settings) -> None:
    client, run = running
    fill(settings, streams=("ab" + 30 * "0", "ac" + 29 * "0" + "1"))
    for part, told in (("a", "a can be any of 2 cached streams"), ("0ff", "no cached stream '0ff'"), ("", "no cached stream ''")):
        refused = run("delete", "ab", part)
        assert (refused.exit_code, told in refused.stderr) == (3, True)
    assert len(client.cached_streams()) == 2
    assert run("delete", "ab", "01").exit_code == 0
    assert client.cached_streams() == []


@pytest.mark.parametrize("width", [80, 60])
def test_names_in_the_list_are_whole_however_narrow_it_is(
    width: int, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = Storage(settings.resolved_cache_url())
    cache = ActivationCache(storage, settings.cache_bytes)
    cache.mark(STREAMS[0], {"model": "/models/a-model-of-a-long-name", "dataset": "./text"})
    Console(width=width).print(text_tables.cached_streams(cache.streams()))
    shown = capsys.readouterr().out
    assert STREAMS[0] in shown
    assert "…" not in shown
