"""The activation cache as files: bounded, the least recently used stream first to go, nothing damaged trusted."""

import hashlib
import shutil
from pathlib import Path

import pytest

from sae_service.errors import DamagedCheckpoint, NotFound, StorageFailure
from sae_service.storage.cache import IN_USE_S, ActivationCache
from sae_service.storage.cached_stream import CachedStream
from sae_service.storage.objects import Storage

ABOUT = {"model": "./model", "dataset": "./text"}
FIRST, SECOND, THIRD = (f"{number:032x}" for number in (1, 2, 3))


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def opened(folder: Path, clock: Clock, limit: int = 10_000, project: str | None = None) -> ActivationCache:
    return ActivationCache(Storage(folder.as_uri()), limit, project, clock)


def add(cache: ActivationCache, stream: str, size: int, name: str = "0") -> None:
    cache.mark(stream, ABOUT)
    cache.put(f"{stream}/hook/float32", name, bytes(size))


def test_a_stream_says_what_it_is_how_large_it_is_and_when_it_was_used(tmp_path: Path, clock: Clock) -> None:
    cache = opened(tmp_path, clock, project="ours")
    add(cache, FIRST, 100)
    clock.now += 1000
    cache.mark(FIRST, ABOUT)
    (found,) = cache.streams()
    assert (found.id, found.model, found.dataset, found.project) == (FIRST, "./model", "./text", "ours")
    assert (found.created_at, found.used_at, found.hook_names) == (1_000_000, 1_001_000, ("hook",))
    assert found.n_bytes == sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())


def test_what_is_written_is_read_under_the_name_with_its_hash(tmp_path: Path, clock: Clock) -> None:
    cache, folder = opened(tmp_path, clock), f"{FIRST}/hook/float32"
    cache.put(folder, "a", b"rows")
    name = f"a-{hashlib.sha256(b'rows').hexdigest()}"
    assert cache.chunks(folder) == [name]
    assert cache.read(folder, name) == b"rows"


def test_a_damaged_chunk_is_refused_and_deleted(tmp_path: Path, clock: Clock) -> None:
    cache, folder = opened(tmp_path, clock), f"{FIRST}/hook/float32"
    cache.put(folder, "a", b"rows")
    (name,) = cache.chunks(folder)
    (tmp_path / folder / name).write_bytes(b"rowz")
    with pytest.raises(DamagedCheckpoint, match="is damaged, and has been deleted"):
        cache.read(folder, name)
    assert cache.chunks(folder) == []
    with pytest.raises(DamagedCheckpoint, match="by another job or a user"):
        cache.read(folder, name)


def test_the_least_recently_used_stream_makes_room(tmp_path: Path, clock: Clock) -> None:
    cache = opened(tmp_path, clock)
    for stream in (FIRST, SECOND):
        add(cache, stream, 4000)
        clock.now += 2 * IN_USE_S
    cache.mark(FIRST, ABOUT)
    clock.now += 2 * IN_USE_S
    add(cache, THIRD, 4000)
    assert [stream.id for stream in cache.streams()] == [THIRD, FIRST]


def test_a_stream_that_another_job_has_deleted_meanwhile_has_made_room(tmp_path: Path, clock: Clock) -> None:
    class Late(ActivationCache):
        """One that another is faster than."""

        def streams(self) -> list[CachedStream]:
            found = super().streams()
            opened(tmp_path, clock).delete(FIRST)
            return found

    add(opened(tmp_path, clock), FIRST, 6000)
    clock.now += 2 * IN_USE_S
    late = Late(Storage(tmp_path.as_uri()), 10_000, None, clock)
    add(late, SECOND, 6000)
    assert len(late.chunks(f"{SECOND}/hook/float32")) == 1


def test_a_stream_in_use_makes_no_room_for_another(tmp_path: Path, clock: Clock) -> None:
    cache = opened(tmp_path, clock)
    add(cache, FIRST, 6000)
    clock.now += IN_USE_S / 2
    with pytest.raises(StorageFailure, match="no room"):
        add(cache, SECOND, 6000)
    assert FIRST in [stream.id for stream in cache.streams()]


def test_no_stream_goes_where_all_of_them_would_make_too_little_room(tmp_path: Path, clock: Clock) -> None:
    cache = opened(tmp_path, clock)
    add(cache, FIRST, 1000)
    clock.now += IN_USE_S + 1
    with pytest.raises(StorageFailure):
        add(cache, SECOND, 20_000)
    assert FIRST in {found.id for found in cache.streams()}


def test_a_stream_that_is_deleted_while_a_job_adds_to_it_says_again_what_it_is(tmp_path: Path, clock: Clock) -> None:
    cache = opened(tmp_path, clock)
    add(cache, FIRST, 100)
    cache.delete(FIRST)
    add(cache, FIRST, 100, "1")
    (found,) = cache.streams()
    assert (found.model, found.created_at) == ("./model", 1_000_000)


def test_a_stream_never_makes_room_for_itself(tmp_path: Path, clock: Clock) -> None:
    cache = opened(tmp_path, clock)
    add(cache, FIRST, 6000)
    clock.now += 2 * IN_USE_S
    with pytest.raises(StorageFailure, match="no room"):
        add(cache, FIRST, 6000, "1")
    assert len(cache.chunks(f"{FIRST}/hook/float32")) == 1


def test_a_stream_that_says_nothing_of_itself_is_listed_and_goes_first(tmp_path: Path, clock: Clock) -> None:
    cache = opened(tmp_path, clock)
    for stream in (FIRST, SECOND):
        add(cache, stream, 4000)
    (tmp_path / SECOND / "stream.json").write_text("{")
    clock.now += 2 * IN_USE_S
    assert [(stream.id, stream.model) for stream in cache.streams()] == [(FIRST, "./model"), (SECOND, None)]
    add(cache, THIRD, 4000)
    assert [stream.id for stream in cache.streams()] == [THIRD, FIRST]


def test_what_a_cut_off_write_has_left_counts_and_goes_with_its_stream(tmp_path: Path, clock: Clock) -> None:
    cache = opened(tmp_path, clock)
    add(cache, FIRST, 1000)
    (tmp_path / FIRST / "hook/float32/1-ab#1").write_bytes(bytes(7000))
    clock.now += 2 * IN_USE_S
    add(cache, SECOND, 4000)
    assert [stream.id for stream in cache.streams()] == [SECOND]
    assert not (tmp_path / FIRST).exists()


def test_a_disk_that_is_almost_full_is_left_alone(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_service.storage.cache.SPARED", shutil.disk_usage(tmp_path).total)
    monkeypatch.setattr("sae_service.storage.cache.SHARE_SPARED", 1)
    with pytest.raises(StorageFailure, match="almost full"):
        opened(tmp_path, clock).put(f"{FIRST}/hook/float32", "a", b"rows")


@pytest.mark.parametrize("stream", [SECOND, "..", "", "stream.json", FIRST[:8]])
def test_only_a_stream_can_be_deleted(stream: str, tmp_path: Path, clock: Clock) -> None:
    cache = opened(tmp_path, clock)
    add(cache, FIRST, 100)
    with pytest.raises(NotFound):
        cache.delete(stream)
    cache.delete(FIRST)
    assert cache.streams() == []
