"""Whatever is wrong with the activation cache, or with what is read beside it, the rows are those of the model."""

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sae_service.activations import cached_rows
from sae_service.activations.buffer import FillStart
from sae_service.activations.chunks import Chunk, RowFormat, Stored, packed
from sae_service.activations.source import Source
from sae_service.errors import NotFound
from sae_service.storage.cache import ActivationCache
from tests.cached_streams import HOOKS, LIMIT, Reader, chunks, opened, spec
from tests.conftest import DEMO

FORM = RowFormat("float32", "float32")


@pytest.mark.parametrize("damage", ["flipped", "cut", "deleted", "replaced by text"])
def test_a_chunk_that_is_damaged_or_gone_is_computed_again(filled: ActivationCache, live: Any, tmp_path: Path, damage: str) -> None:
    victim = chunks(tmp_path, HOOKS[0])[1]
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    changed = {"flipped": bytes(content), "cut": bytes(content[:100]), "replaced by text": b"text"}
    if damage == "deleted":
        victim.unlink()
    else:
        victim.write_bytes(changed[damage])
    reader = Reader(filled, "use")
    assert reader.read(6) == live
    assert 50 < float(reader.share.rstrip("%")) < 90
    assert len(reader.warnings) == (damage != "deleted")
    reader = Reader(filled, "fill")
    assert reader.read(6) == live
    reader = Reader(filled, "use")
    assert reader.read(6) == live
    assert (reader.share, reader.warnings) == ("100.0%", [])


def changed(content: bytes, wrong: str) -> bytes:
    """A chunk as another program might write it, with a name and a hash of its own."""
    chunk = Chunk(bytearray(content), FORM)
    batches = list(chunk.batches(0))
    if wrong == "width":
        batches = [replace(batch, stored=Stored(batch.stored.rows[:, :64])) for batch in batches]
    elif wrong == "place":
        batches = batches[1:]
    elif wrong == "length":
        batches[1] = replace(batches[1], stored=Stored(batches[1].stored.rows[:-1]))
    else:
        other = batches[1].cursor.model_copy(update={"unfinished": (1, 2)})
        batches[1] = replace(batches[1], cursor=other)
    return packed(chunk.folder, chunk.previous, batches)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("width", "has rows of 64 numbers, and the model of 128."),
        ("place", "holds the rows of another part of the text."),
        ("length", "has other rows than the chunks of the other hook points."),
        ("cursor", "has other rows than the chunks of the other hook points."),
        ("text", "does not hold rows of this kind."),
    ],
)
def test_a_chunk_that_does_not_fit_is_left_out_and_computed(
    wrong: str, reason: str, filled: ActivationCache, live: Any, tmp_path: Path
) -> None:
    victim = chunks(tmp_path, HOOKS[1])[1]
    content = b"text" if wrong == "text" else changed(victim.read_bytes(), wrong)
    start, _, _ = victim.name.rpartition("-")
    victim.unlink()
    victim.with_name(f"{start}-{hashlib.sha256(content).hexdigest()}").write_bytes(content)
    reader = Reader(filled, "use")
    assert reader.read(6) == live
    assert 50 < float(reader.share.rstrip("%")) < 95
    assert all(reason in warning for warning in reader.warnings)
    assert len(reader.warnings) == (2 if "other hook points" in reason else 1)


def test_a_chunk_that_was_moved_to_another_hook_point_is_left_out(filled: ActivationCache, live: Any, tmp_path: Path) -> None:
    theirs, victim = (chunks(tmp_path, hook)[1] for hook in HOOKS)
    victim.unlink()
    shutil.copy(theirs, victim.with_name(theirs.name))
    reader = Reader(filled, "use")
    assert reader.read(6) == live
    (warning,) = reader.warnings
    assert f"{HOOKS[1]}/float32/{theirs.name} holds the rows of " in warning
    assert warning.endswith(f"{HOOKS[0]}/float32.")


def test_a_stream_that_vanishes_as_it_is_read_is_read_live(filled: ActivationCache, live: Any) -> None:
    def delete(index: int) -> None:
        if index == 2:
            filled.delete(filled.streams()[0].id)

    reader = Reader(filled, "use")
    assert reader.read(6, before=delete) == live
    assert 0 < float(reader.share.rstrip("%")) < 100
    assert reader.warnings


@pytest.mark.parametrize("error", [NotFound("there is no such stream"), RuntimeError("a bug"), MemoryError()])
def test_whatever_fails_as_rows_are_added_ends_the_adding_and_not_the_job(
    error: Exception, cache: ActivationCache, live: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(cache, "put", fail)
    reader = Reader(cache, "fill")
    assert reader.read(3)[0][HOOKS[0]] == live[0][HOOKS[0]][: 3 * 1000 * 512]
    (warning,) = reader.warnings
    assert warning.startswith("The job no longer adds to the activation cache: ")
    assert (str(error) or "MemoryError") in warning


def test_rows_are_read_though_their_use_cannot_be_noted(filled: ActivationCache, live: Any, tmp_path: Path) -> None:
    (about,) = tmp_path.glob("cache/*/stream.json")
    about.unlink()
    about.mkdir()
    reader = Reader(opened(tmp_path / "cache"), "use")
    assert reader.read(6) == live
    assert reader.share == "100.0%"
    (warning,) = reader.warnings
    assert "does not note that its rows are in use" in warning


@pytest.mark.parametrize("why", ["limit", "storage"])
def test_a_cache_without_room_or_storage_stops_filling_and_not_the_job(why: str, live: Any, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    cache = opened(folder, 1 << 20 if why == "limit" else LIMIT)

    def break_storage(index: int) -> None:
        if index == 2 and why == "storage":
            shutil.rmtree(folder)
            folder.write_text("no folder")

    reader = Reader(cache, "fill")
    assert reader.read(6, before=break_storage) == live
    assert [warning for warning in reader.warnings if "The job no longer adds to the activation cache: " in warning]
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 1 << 20


@pytest.mark.parametrize("of", ["model", "text"])
def test_files_that_are_replaced_before_they_are_hashed_are_not_cached(of: str, cache: ActivationCache, tmp_path: Path) -> None:
    for name in ("model", "text"):
        shutil.copytree(DEMO / name, tmp_path / name)
    files: dict[str, Any] = {"model": {"name": str(tmp_path / "model")}, "dataset": {"path": str(tmp_path / "text")}}
    source = Source(spec(cache="fill", **files), "cpu")
    victim = tmp_path / of / ("tokenizer_config.json" if of == "model" else "train.jsonl.xz")

    def touch() -> bool:
        os.utime(victim, ns=(0, 0))
        return False

    if of == "model":
        touch()
    source.open_cache(cache, touch)
    source.harvest(FillStart()).fill(2000)
    events: list[str] = []
    source.close(lambda _, text: events.append(text))
    assert events == [f"stream.cache: {victim} has changed since the job began, so the cache is not used."]
    assert cache.streams() == []


def test_rows_of_files_that_are_replaced_as_they_are_read_are_not_cached(
    cache: ActivationCache, live: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_rows, "LOOK_EVERY_S", 0)
    shutil.copytree(DEMO / "text", tmp_path / "text")
    victim = tmp_path / "text" / "train.jsonl.xz"
    states = []

    def touch(index: int) -> None:
        if index == 3:
            states.append(len(chunks(tmp_path)))
            os.utime(victim, ns=(0, 0))

    dataset = {"path": str(tmp_path / "text")}
    reader = Reader(cache, "fill", dataset=dataset)
    assert reader.read(6, before=touch) == live
    assert reader.warnings == [f"{victim} has changed since the job began, so the job no longer uses the activation cache."]
    # One chunk of each hook point may have been in the making.
    assert states[0] <= len(chunks(tmp_path)) <= states[0] + len(HOOKS)
    reader = Reader(cache, "use", dataset=dataset)
    assert reader.read(6) == live
    assert 0 < float(reader.share.rstrip("%")) < 80
