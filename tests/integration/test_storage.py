"""Files in a folder, as a job sees them."""

from pathlib import Path

import obstore
import pytest
from obstore.exceptions import AlreadyExistsError

from sae_service.errors import StorageFailure
from sae_service.storage.objects import Storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path.as_uri())


def test_nothing_is_overwritten(storage: Storage) -> None:
    storage.put("jobs/j/file", b"first")
    with pytest.raises(StorageFailure, match="jobs/j/file exists already"):
        storage.put("jobs/j/file", b"second")
    assert storage.get("jobs/j/file") == b"first"


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
