"""Rows from the activation cache are the rows of the model, whichever jobs have filled it and wherever it ends."""

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae_service.activations import cached_rows
from sae_service.activations.buffer import FillStart
from sae_service.activations.chunks import Chunk, RowFormat, Stored, packed
from sae_service.activations.model import LanguageModel
from sae_service.activations.source import Source
from sae_service.errors import InvalidSpec, NotFound, Stopped
from sae_service.readable import Roots
from sae_service.spec import ModelSpec
from sae_service.storage.cache import ActivationCache
from tests.cached_streams import HOOKS, LIMIT, Reader, make_small, opened, spec
from tests.conftest import DEMO

FORM = RowFormat("float32", "float32")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)


@pytest.fixture
def cache(tmp_path: Path) -> ActivationCache:
    return opened(tmp_path / "cache")


@pytest.fixture(scope="module")
def live() -> tuple[dict[str, bytes], FillStart]:
    return Reader(None, "off").read(6)


@pytest.fixture
def filled(cache: ActivationCache, live: Any) -> ActivationCache:
    reader = Reader(cache, "fill")
    assert reader.read(6) == live
    assert reader.share == "0.0%"
    return cache


def chunks(folder: Path, hook: str = "*") -> list[Path]:
    return sorted(folder.glob(f"cache/*/{hook}/float32/*"), key=lambda path: [int(n) for n in path.name.split("-")[0].split(".")])


def test_what_one_job_has_filled_another_reads_to_the_last_byte(filled: ActivationCache, live: Any, tmp_path: Path) -> None:
    assert len(chunks(tmp_path, HOOKS[0])) > 3
    reader = Reader(filled, "use")
    assert reader.read(6) == live
    assert (reader.share, reader.warnings) == ("100.0%", [])


def test_a_job_reads_the_hook_points_that_it_has_in_common_with_another(filled: ActivationCache, live: Any) -> None:
    reader = Reader(filled, "use", HOOKS[1:])
    found, _ = reader.read(6)
    assert found == {HOOKS[1]: live[0][HOOKS[1]]}
    assert reader.share == "100.0%"


def test_rows_are_the_same_beside_those_of_a_hook_point_that_only_the_bridge_has(cache: ActivationCache, live: Any) -> None:
    only_bridge, own = "blocks.1.attn.hook_q", HOOKS[0]
    both, end = Reader(cache, "fill", (only_bridge, own)).read(2)
    assert both[own] == live[0][own][: len(both[own])]
    for hooks in ((own,), (only_bridge,), (own, only_bridge)):
        reader = Reader(cache, "use", hooks)
        assert reader.read(2) == ({name: both[name] for name in hooks}, end)
        assert reader.share == "100.0%"
        assert {name: both[name] for name in hooks} == Reader(None, "off", hooks).read(2)[0]


def test_reading_begins_at_any_place(filled: ActivationCache, live: Any) -> None:
    whole, end = live
    for n_before in range(1, 6):
        _, start = Reader(filled, "use").read(n_before)
        reader = Reader(filled, "use")
        found, last = reader.read(6 - n_before, start)
        assert found == {name: rows[n_before * 1000 * 512 :] for name, rows in whole.items()}
        assert (last, reader.share) == (end, "100.0%")


def test_a_job_goes_on_live_where_the_cache_ends_and_fills_the_rest(cache: ActivationCache, live: Any) -> None:
    Reader(cache, "fill").read(2)
    reader = Reader(cache, "use")
    assert reader.read(6) == live
    assert 20 < float(reader.share.rstrip("%")) < 60
    Reader(cache, "fill").read(6)
    reader = Reader(cache, "use")
    assert reader.read(6) == live
    assert reader.share == "100.0%"


def test_a_job_that_begins_in_the_middle_fills_from_there_and_others_find_it(cache: ActivationCache, live: Any) -> None:
    _, middle = Reader(None, "off").read(3)
    Reader(cache, "fill").read(3, middle)
    reader = Reader(cache, "use")
    assert reader.read(6) == live
    assert 30 < float(reader.share.rstrip("%")) < 60


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
    return packed(chunk.previous, batches)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("width", "has rows of 64 numbers, and the model of 128."),
        ("place", "holds the rows of another part of the text."),
        ("length", "has other rows than the chunks of the other hook points."),
        ("cursor", "has other rows than the chunks of the other hook points."),
        ("text", "does not hold rows of this kind."),
    ],
)
def test_a_chunk_that_does_not_fit_is_left_out_and_computed(
    wrong: str, said: str, filled: ActivationCache, live: Any, tmp_path: Path
) -> None:
    victim = chunks(tmp_path, HOOKS[1])[1]
    content = b"text" if wrong == "text" else changed(victim.read_bytes(), wrong)
    start, _, _ = victim.name.rpartition("-")
    victim.unlink()
    victim.with_name(f"{start}-{hashlib.sha256(content).hexdigest()}").write_bytes(content)
    reader = Reader(filled, "use")
    assert reader.read(6) == live
    assert 50 < float(reader.share.rstrip("%")) < 95
    assert all(said in warning for warning in reader.warnings)
    assert len(reader.warnings) == (2 if "other hook points" in said else 1)


def test_a_stream_that_vanishes_as_it_is_read_is_read_live(filled: ActivationCache, live: Any) -> None:
    def delete(index: int) -> None:
        if index == 2:
            filled.delete(filled.streams()[0].id)

    reader = Reader(filled, "use")
    assert reader.read(6, before=delete) == live
    assert 0 < float(reader.share.rstrip("%")) < 100
    assert reader.warnings


def test_two_jobs_fill_the_same_stream_at_once(cache: ActivationCache, live: Any, tmp_path: Path) -> None:
    harvests = {}
    readers = [Reader(cache, "fill"), Reader(opened(tmp_path / "cache"), "fill")]
    for reader in readers:
        harvests[reader] = reader.source.harvest(FillStart())
    parts: dict[Reader, list[bytes]] = {reader: [] for reader in readers}
    for _ in range(6):
        for reader, harvest in harvests.items():
            parts[reader].append(np.asarray(harvest.fill(1000)[0][HOOKS[0]]).tobytes())
    for reader in readers:
        reader.source.close(lambda *_: None)
        assert b"".join(parts[reader]) == live[0][HOOKS[0]]
    reader = Reader(cache, "use")
    assert reader.read(6) == live
    assert reader.share == "100.0%"


@pytest.mark.parametrize("error", [NotFound("there is no such stream"), RuntimeError("a bug"), MemoryError()])
def test_whatever_fails_as_rows_are_added_ends_the_adding_and_not_the_job(
    error: Exception, cache: ActivationCache, live: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(cache, "put", fail)
    reader = Reader(cache, "fill")
    assert reader.read(3)[0][HOOKS[0]] == live[0][HOOKS[0]][: 3 * 1000 * 512]
    (said,) = reader.warnings
    assert said.startswith("The job no longer adds to the activation cache: ")
    assert (str(error) or "MemoryError") in said


def test_rows_are_read_though_their_use_cannot_be_noted(filled: ActivationCache, live: Any, tmp_path: Path) -> None:
    (about,) = tmp_path.glob("cache/*/stream.json")
    about.unlink()
    about.mkdir()
    reader = Reader(opened(tmp_path / "cache"), "use")
    assert reader.read(6) == live
    assert reader.share == "100.0%"
    (said,) = reader.warnings
    assert "does not note that its rows are in use" in said


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


def test_long_rows_are_left_out_of_cached_rows_as_of_others(filled: ActivationCache) -> None:
    found = []
    for mode in ("off", "use"):
        reader = Reader(filled, mode, max_activation_norm_multiple=1.5)
        harvest = reader.source.harvest(FillStart(), reader.source.norm_limits(lambda: None))
        rows, start = harvest.fill(3000)
        found.append(({name: np.asarray(one).tobytes() for name, one in rows.items()}, start))
        reader.source.close(lambda *event, reader=reader: reader.events.append(event))
    assert found[0] == found[1]
    # The norms are those of more rows than were cached.
    assert 70 < float(reader.share.rstrip("%")) < 100
    assert found[0][0][HOOKS[0]] != Reader(None, "off").read(3)[0][HOOKS[0]]


@pytest.mark.parametrize("kind", ["int8", "bfloat16"])
def test_coarser_rows_are_the_same_from_the_cache_from_the_model_and_without_a_cache(
    kind: str, cache: ActivationCache, live: Any, tmp_path: Path
) -> None:
    readers, found = [], []
    for where, mode in ((cache, "fill"), (cache, "use"), (None, "use")):
        readers.append(Reader(where, mode, cache_dtype=kind))
        found.append(readers[-1].read(6))
    assert found[0] == found[1] == found[2]
    assert readers[1].share == "100.0%"
    exact, rounded = (np.frombuffer(rows[0][HOOKS[0]], np.float32).reshape(-1, 128) for rows in (live, found[0]))
    unit = np.abs(exact).max(axis=1, keepdims=True) / (127 if kind == "int8" else 128)
    assert np.abs(rounded - exact).max() > 0
    assert (np.abs(rounded - exact) <= 0.51 * unit).all()
    assert all(any("so they are not exact" in said for _, said in reader.events) for reader in readers)
    size = sum(path.stat().st_size for path in tmp_path.glob(f"cache/*/*/{kind}/*"))
    assert size < 6300 * 2 * 128 * (1.2 if kind == "int8" else 2.2)


def test_rows_of_another_number_type_are_another_matter(filled: ActivationCache) -> None:
    reader = Reader(filled, "use", cache_dtype="int8")
    reader.read(1)
    assert reader.share == "0.0%"


def test_what_decides_the_rows_decides_where_they_are(filled: ActivationCache, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(DEMO / "model", model)
    same: list[dict[str, Any]] = [{"model": {"name": str(model)}}, {"tokens": 512, "seed": 4, "batch": 128, "buffer_rows": 0}]
    others: list[dict[str, Any]] = [
        {"context_size": 64}, {"prompts": 8}, {"exclude": ("bos",)}, {"model": {"name": str(model), "dtype": "bfloat16"}},
        {"dataset": {"path": str(DEMO / "text"), "split": "test"}},
        {"dataset": {"path": str(DEMO / "text"), "held_out_share": 0.1}},
    ]  # fmt: skip
    assert [share(filled, stream) for stream in same] == ["100.0%"] * len(same)
    assert [share(filled, stream) for stream in others] == ["0.0%"] * len(others)
    (model / "tokenizer_config.json").write_text((model / "tokenizer_config.json").read_text() + " ")
    assert share(filled, same[0]) == "0.0%"
    assert share(opened(tmp_path / "cache", project="theirs"), same[1]) == "0.0%"


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
    source.close(lambda _, said: events.append(said))
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


def test_what_computes_the_rows_is_named_by_what_it_is_and_not_by_what_torch_was_left_at() -> None:
    models = [LanguageModel(ModelSpec(name=str(DEMO / "model"), precision=kind), "cpu") for kind in ("float32", "bfloat16")]
    before = [model.computed_by() for model in models]
    assert before[0] != before[1]
    torch.set_float32_matmul_precision("high")
    assert [model.computed_by() for model in models] == before
    assert before[0]["cpu"]
    if (said := Path("/proc/cpuinfo")).exists():
        assert all(word in said.read_text() for word in before[0]["cpu"].split(", "))


def share(cache: ActivationCache, stream: dict[str, Any]) -> str:
    reader = Reader(cache, "use", **stream)
    reader.source.harvest(FillStart()).fill(100)
    reader.source.close(lambda *event: reader.events.append(event))
    return reader.share


def test_a_job_that_may_not_read_the_text_is_refused_though_its_rows_are_there(filled: ActivationCache, tmp_path: Path) -> None:
    source = Source(spec(cache="use"), "cpu", Roots((DEMO / "model",)))
    with pytest.raises(InvalidSpec, match="outside the folders"):
        source.open_cache(filled, lambda: False)


def test_a_stop_is_seen_as_the_files_are_read(cache: ActivationCache) -> None:
    source = Source(spec(cache="use"), "cpu")
    with pytest.raises(Stopped):
        source.open_cache(cache, lambda: True)


def test_a_job_whose_service_has_no_cache_says_so_and_goes_on(live: Any) -> None:
    reader = Reader(None, "fill")
    assert reader.read(6) == live
    assert reader.warnings == ["stream.cache: this service has no activation cache, and the model computes all rows."]
