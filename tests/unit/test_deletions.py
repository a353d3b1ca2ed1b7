"""Files that are deleted on a thread, to which nobody listens."""

from pathlib import Path

import pytest

from sae_service.storage.objects import Storage
from workers.deletions import Deletions


def test_an_error_that_nobody_foresaw_is_logged_and_the_next_one_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Storage(tmp_path.as_uri())
    for key in ("jobs/a", "jobs/b"):
        storage.put(f"{key}/file", b"content")
    delete = storage.delete

    def fails_once(key: str) -> None:
        if key == "jobs/a":
            raise ValueError("nobody foresaw it")
        delete(key)

    monkeypatch.setattr(storage, "delete", fails_once)
    deletions = Deletions(storage)
    deletions.add("jobs/a")
    deletions.add("jobs/b")
    deletions.wait(20)
    assert storage.keys("jobs") == ["jobs/a/file"]
    assert "cannot delete jobs/a" in caplog.text
    assert "nobody foresaw it" in caplog.text
