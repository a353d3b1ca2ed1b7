"""Rows from the activation cache are the rows of the model, whichever jobs have filled it and wherever it ends."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae_service.activations.buffer import FillStart
from sae_service.activations.model import LanguageModel
from sae_service.activations.source import Source
from sae_service.errors import InvalidSpec, Stopped
from sae_service.readable import Roots
from sae_service.spec import ModelSpec
from sae_service.storage.cache import ActivationCache
from tests.cached_streams import HOOKS, Reader, chunks, opened, spec
from tests.conftest import DEMO


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
    assert all(any("so they are not exact" in text for _, text in reader.events) for reader in readers)
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


def test_what_computes_the_rows_is_named_by_what_it_is_and_not_by_what_torch_was_left_at() -> None:
    models = [LanguageModel(ModelSpec(name=str(DEMO / "model"), precision=kind), "cpu") for kind in ("float32", "bfloat16")]
    before = [model.computed_by() for model in models]
    assert before[0] != before[1]
    torch.set_float32_matmul_precision("high")
    assert [model.computed_by() for model in models] == before
    assert before[0]["cpu"]
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        assert all(word in cpuinfo.read_text() for word in before[0]["cpu"].split(", "))


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
