"""The activation cache in a bucket: what a job has kept there another trains from, and it is listed, deleted and bounded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sae_service.errors import NotFound, StorageFailure
from sae_service.storage.cache import IN_USE_S, ActivationCache
from sae_service.storage.objects import Storage
from tests.faults import every_path
from tests.faults.results import check_alike, result
from tests.faults.stores import Moto, Store, Swift
from tests.service import Service

pytestmark = pytest.mark.faults
ABOUT = {"model": "./model", "dataset": "./text"}
FIRST, SECOND, THIRD = (f"{number:032x}" for number in (1, 2, 3))


@pytest.fixture(scope="module", params=[Moto, Swift])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = request.param(tmp_path_factory.mktemp("store"))
    yield store
    store.kill()


def test_a_job_trains_from_what_another_has_kept_in_a_bucket_to_the_same_bytes(
    store: Store, long_text: dict[str, Any], tmp_path: Path, compiled: dict[str, str]
) -> None:
    long_text["saes"].pop()
    long_text["stream"]["tokens"] = 60 * 256
    service = Service(tmp_path, **compiled | every_path.small_chunks() | store.settings())
    try:
        found, shares = [], []
        for mode in ("off", "fill", "use"):
            job = service.ended(service.client.submit(every_path.with_cache(long_text, mode)))
            assert job.status == "succeeded", service.client.events(job.id)[-3:]
            found.append(result(service, job, tmp_path / "weights"))
            shares += [every_path.share_from_cache(service, job)] if mode != "off" else []
        for other in found[1:]:
            check_alike(other, found[0])
        assert shares == [0, 1]
        (stream,) = service.client.cached_streams()
        assert stream.model == long_text["stream"]["model"]["name"]
        assert stream.n_bytes > 60 * 256 * 512
        service.client.delete_cached_stream(stream.id)
        assert service.client.cached_streams() == []
        job = service.ended(service.client.submit(every_path.with_cache(long_text, "use")))
        assert every_path.share_from_cache(service, job) == 0
        check_alike(result(service, job, tmp_path / "weights"), found[0])
    finally:
        service.interrupt()


def test_the_least_recently_used_stream_in_a_bucket_makes_room(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in store.settings().items():
        monkeypatch.setenv(name, value)
    now = 1_000_000.0
    storage = Storage(f"{store.settings()['SAE_SERVICE_STORAGE_URL']}/bounded")
    cache = ActivationCache(storage, 10_000, clock=lambda: now)

    def add(stream: str) -> None:
        cache.mark(stream, ABOUT)
        cache.put(f"{stream}/hook/float32", "0", bytes(4000))

    for stream in (FIRST, SECOND):
        add(stream)
        now += 2 * IN_USE_S
    cache.mark(FIRST, ABOUT)
    with pytest.raises(StorageFailure, match="no room"):
        cache.put(f"{SECOND}/hook/float32", "1", bytes(4000))
    add(THIRD)
    assert [(stream.id, stream.model) for stream in cache.streams()] == [(FIRST, "./model"), (THIRD, "./model")]
    (name,) = cache.chunks(f"{FIRST}/hook/float32")
    assert cache.read(f"{FIRST}/hook/float32", name) == bytes(4000)
    cache.delete(FIRST)
    with pytest.raises(NotFound):
        cache.delete(FIRST)
    assert [stream.id for stream in cache.streams()] == [THIRD]
