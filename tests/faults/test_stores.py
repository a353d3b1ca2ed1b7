"""Checkpoints in stores that speak S3, and kills over them."""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest

from sae_service.errors import DamagedCheckpoint, NotFound, StorageFailure
from sae_service.storage.objects import PART, Content, Parts, Storage
from tests.faults import invariants
from tests.faults.following import Following
from tests.faults.history import History
from tests.faults.random_kills import RandomKills
from tests.faults.results import result
from tests.faults.stores import Moto, Store, Swift
from tests.published import published
from tests.service import Service

pytestmark = pytest.mark.faults
FILES = {"saes/a/cfg.json": b"{}", "state/arrays.safetensors": bytes(3_000_000), "state/values.json": b""}


@pytest.fixture(scope="module", params=[Moto, Swift])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = request.param(tmp_path_factory.mktemp("store"))
    yield store
    store.kill()


def opened(store: Store, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """The store as this process sees it."""
    for name, value in store.settings().items():
        monkeypatch.setenv(name, value)
    return Storage(store.settings()["SAE_SERVICE_STORAGE_URL"])


def in_pieces(content: bytes) -> Parts:
    """The same content in many pieces of one length, which is not the store's."""
    return Parts(len(content), lambda: (content[start : start + 999_983] for start in range(0, len(content), 999_983)))


def test_what_is_published_is_read_back_never_overwritten_and_deleted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = opened(store, monkeypatch)
    storage.publish("jobs/j/step-1", FILES)
    assert published(storage, "jobs/j/step-1") == FILES
    assert storage.keys("jobs/j") == [f"jobs/j/step-1/{name}" for name in ("manifest.json", *sorted(FILES))]
    assert storage.size("jobs/j/step-1/state/values.json") == 0
    assert b"".join(storage.stream("jobs/j/step-1/state/arrays.safetensors", 5, 2_500_000)) == bytes(2_499_995)
    with pytest.raises(StorageFailure, match="exists already"):
        storage.put("jobs/j/step-1/saes/a/cfg.json", b"other")
    # As a request is repeated whose answer was an error or got lost.
    storage.put("jobs/j/step-1/saes/a/cfg.json", FILES["saes/a/cfg.json"])
    with pytest.raises(NotFound):
        storage.get("jobs/j/step-2/saes/a/cfg.json")
    for _ in range(2):
        storage.delete("jobs/j/step-1")
    assert storage.keys("jobs/j") == []
    with pytest.raises(DamagedCheckpoint):
        published(storage, "jobs/j/step-1")


@pytest.mark.parametrize("made", [lambda content: content, in_pieces], ids=["whole", "in-pieces"])
def test_a_long_file_travels_in_parts(
    store: Store, monkeypatch: pytest.MonkeyPatch, made: Callable[[bytes], Content]
) -> None:
    storage, content = opened(store, monkeypatch), random.Random(0).randbytes(2 * PART + 5)
    storage.publish("jobs/long/step-1", {"state/arrays.safetensors": made(content)})
    assert published(storage, "jobs/long/step-1") == {"state/arrays.safetensors": content}
    e_tag = obstore.head(storage._store, "jobs/long/step-1/state/arrays.safetensors")["e_tag"]
    assert e_tag is not None
    assert e_tag.strip('"').endswith("-3"), "so a store marks what came in three parts"
    storage.delete("jobs/long")
    assert storage.keys("jobs/long") == []


def test_kills_do_not_change_the_bytes_and_nothing_is_left_over(
    store: Store, history: History, quick: dict[str, Any], tmp_path: Path, compiled: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    service = Service(tmp_path, 2, **compiled | store.settings())
    try:
        job = service.ended(service.client.submit(quick))
        assert job.status == "succeeded", service.client.events(job.id)[-3:]
        undisturbed = [result(service, job, tmp_path / "weights")]
        kills = RandomKills(service, history, [quick], at_once=3)
        kills.run(6)
        kills.check(undisturbed, tmp_path / "weights")
        storage = opened(store, monkeypatch)
        for following in kills.jobs:
            prefix = f"jobs/{following.job.id}"
            invariants.check_nothing_left(
                service, following.job, lambda prefix=prefix: [key.split("/")[2] for key in storage.keys(prefix)]
            )
        history.add("summary", **kills.summary())
        print(f"\n{type(store).__name__}: {kills.summary()}, all alike")  # noqa: T201
    finally:
        service.interrupt()


def test_a_job_outlives_a_store_that_is_killed_and_started_again(
    history: History, quick: dict[str, Any], tmp_path: Path, compiled: dict[str, str]
) -> None:
    store = Swift(tmp_path / "store")
    service = Service(tmp_path, **compiled | store.settings())
    try:
        job = service.started(quick)
        following = Following(service, job, quick)
        store.kill()
        history.add("kill", module="store")
        # Long enough for more attempts to begin than a job may crash in.
        time.sleep(history.random.uniform(40, 60))
        store.start()
        ended = service.ended(job)
        following.look()
        history.add("ended", status=ended.status, attempts=ended.attempt)
        assert ended.status == "succeeded", following.events[-3:]
        invariants.check(service, ended, quick, following.events)
    finally:
        service.interrupt()
        store.kill()
