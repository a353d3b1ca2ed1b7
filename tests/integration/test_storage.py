"""Files in a folder, as a job sees them."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest
from obstore.exceptions import AlreadyExistsError

from sae_service.errors import DamagedCheckpoint, StorageFailure
from sae_service.storage.objects import MANIFEST, PART, Content, Parts, Storage
from tests.published import published


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path.as_uri())


def test_nothing_is_overwritten(storage: Storage) -> None:
    storage.put("jobs/j/file", b"first")
    with pytest.raises(StorageFailure, match="jobs/j/file exists already"):
        storage.put("jobs/j/file", b"second")
    assert storage.get("jobs/j/file") == b"first"


def test_what_is_written_in_place_of_another_object_is_all_that_is_there(storage: Storage, tmp_path: Path) -> None:
    for content in (b"first and longer", b"second"):
        storage.replace("jobs/j/logs/1.log", content)
    assert storage.get("jobs/j/logs/1.log") == b"second"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["1.log"]


def test_a_write_that_meets_itself_on_its_way_can_be_tried_again(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def conflict(*_: object, **__: object) -> None:
        raise AlreadyExistsError("409 ConditionalRequestConflict")

    monkeypatch.setattr(obstore, "put", conflict)
    with pytest.raises(StorageFailure) as caught:
        storage.put("jobs/j/file", b"content")
    assert caught.value.retryable


def test_a_write_that_is_repeated_because_its_answer_was_lost_is_no_failure(storage: Storage) -> None:
    for _ in range(2):
        storage.put("jobs/j/file", b"content")
    assert storage.get("jobs/j/file") == b"content"


@pytest.mark.parametrize("lengths", [[], [0], [3, 0, 5], [PART], [PART, 1], [2 * PART + 5], [7] * 1000, [PART - 1, PART + 1]])
def test_content_in_parts_is_stored_as_if_it_were_whole(storage: Storage, lengths: list[int]) -> None:
    parts = [bytes([index % 256]) * length for index, length in enumerate(lengths)]
    whole = b"".join(parts)
    entries = storage.publish("jobs/j", {"parts": Parts(len(whole), lambda: iter(parts)), "other": b"bytes"})
    assert storage.get("jobs/j/parts") == whole
    assert published(storage, "jobs/j") == {"parts": whole, "other": b"bytes"}
    assert entries == [
        {"path": path, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for path, content in (("other", b"bytes"), ("parts", whole))
    ]


def test_short_content_in_parts_overwrites_nothing(storage: Storage) -> None:
    storage.put("jobs/j/file", b"first")
    with pytest.raises(StorageFailure, match="exists already"):
        storage.put("jobs/j/file", Parts(6, lambda: iter([b"second"])))
    assert storage.get("jobs/j/file") == b"first"


@pytest.mark.parametrize("size", [1, PART + 1])
@pytest.mark.parametrize("sent", [0, 2 * PART])
def test_parts_of_another_length_than_promised_are_not_stored(storage: Storage, tmp_path: Path, size: int, sent: int) -> None:
    with pytest.raises(ValueError, match="promised"):
        storage.publish("jobs/j", {"file": Parts(size, lambda: iter([bytes(sent)]))})
    assert not storage.has_published("jobs/j")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_write_that_is_cut_off_between_two_parts_leaves_nothing_behind(storage: Storage, tmp_path: Path) -> None:
    def parts() -> Iterator[bytes]:
        yield bytes(PART)
        raise OSError("the memory of the array is gone")

    with pytest.raises(StorageFailure, match="the memory of the array is gone"):
        storage.put("jobs/j/file", Parts(2 * PART, parts))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_files_are_asked_for_in_turn_and_their_manifest_is_written_last(storage: Storage) -> None:
    there: list[list[str]] = []

    def files() -> Iterator[tuple[str, Content]]:
        for name in ("second", "first"):
            there.append(storage.keys("jobs/j"))
            yield name, name.encode()

    entries = storage.publish("jobs/j", files())
    assert there == [[], ["jobs/j/second"]]
    assert [entry["path"] for entry in entries] == ["first", "second"]
    assert storage.keys("jobs/j") == ["jobs/j/first", f"jobs/j/{MANIFEST}", "jobs/j/second"]


def test_a_file_in_pieces_is_refused_at_its_end_if_it_is_not_what_it_should_be(storage: Storage) -> None:
    content = bytes(PART) + b"the end"
    storage.put("jobs/j/file", content)
    assert b"".join(storage.checked("jobs/j/file", hashlib.sha256(content).hexdigest())) == content
    pieces = storage.checked("jobs/j/file", hashlib.sha256(b"").hexdigest())
    assert next(pieces) + next(pieces) == content
    with pytest.raises(DamagedCheckpoint, match="does not match"):
        next(pieces)
