"""The worker's side of an attempt whose storage is slow, away, or has what a cut-off write has left."""

import json
import math
import threading
from collections.abc import Callable
from typing import Any

import pytest

from sae_service.errors import StorageFailure
from sae_service.jobs.attempts import Attempt
from sae_service.jobs.lost_attempts import LostAttempts
from tests.integration.supervised import READ_ASSIGNMENT, SPEC, Worker, eventually, saved, says
from tests.published import published


def away(worker: Worker, monkeypatch: pytest.MonkeyPatch, times: float) -> None:
    """Lets the storage fail for so many questions."""
    listed, asked = worker.supervisor._storage.folders, []

    def folders(prefix: str) -> set[str]:
        asked.append(prefix)
        if len(asked) <= times:
            raise StorageFailure("cannot list jobs: connection refused.")
        return listed(prefix)

    monkeypatch.setattr(worker.supervisor._storage, "folders", folders)


def test_an_attempt_that_was_held_up_deletes_nothing_of_the_next_one(
    worker: Worker, child_runs: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = worker.supervisor._storage.folders
    following: list[dict[str, Any]] = []

    def folders(prefix: str) -> set[str]:
        if not following:
            now = [0.0]
            lost_attempts = LostAttempts(worker.database, lease_s=60, clock=lambda: now[0])
            for now[0] in (0, 20, 40, 60):
                lost_attempts.look()
            attempt = Attempt(worker.database, worker.job_id, 2)
            assert attempt.claim("w2") is not None
            following.append(worker.publish(5))
            attempt.commit(following[0], keep=2)
        return listed(prefix)

    monkeypatch.setattr(worker.supervisor._storage, "folders", folders)
    child_runs(READ_ASSIGNMENT + "time.sleep(60)")
    worker.supervisor.work(worker.job_id, 1)
    assert published(worker.storage, following[0]["key"]) == {"saes/a/cfg.json": b"{}"}


def test_a_storage_that_hangs_in_deleting_holds_no_job_up(
    worker: Worker, child_runs: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = threading.Event()
    monkeypatch.setattr(worker.supervisor._storage, "delete", lambda key: hangs.wait(60))
    steps = [saved(worker.publish(step)) for step in range(1, 5)]
    monkeypatch.setattr(worker.supervisor._storage, "folders", lambda prefix: set())
    child_runs(says(*steps) + "\ntime.sleep(60)")
    thread = threading.Thread(target=worker.supervisor.work, args=(worker.job_id, 1))
    thread.start()
    eventually(lambda: [found.step for found in worker.store.checkpoints(worker.job_id)] == [4, 3])
    worker.store.cancel(worker.job_id)
    eventually(lambda: worker.status == "cancelled")
    hangs.set()
    thread.join()


def test_a_job_waits_for_a_storage_that_is_away_and_says_so(
    worker: Worker, child_runs: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    away(worker, monkeypatch, times=12)
    child_runs(says({"kind": "failed", "error": {"code": "invalid_spec", "message": "it began"}, "retryable": False}))
    worker.supervisor.work(worker.job_id, 1)
    messages = [event.message for event in worker.store.events(worker.job_id)]
    assert [message for message in messages if "waits for the storage" in message] == [
        "cannot list jobs: connection refused. The job waits for the storage."
    ]
    assert worker.status == "failed"
    assert messages[-1].endswith("it began")


@pytest.mark.parametrize(("asked", "status"), [("cancel", "cancelled"), ("pause", "paused")])
def test_a_job_that_waits_for_the_storage_can_be_cancelled_and_paused(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, asked: str, status: str
) -> None:
    away(worker, monkeypatch, times=math.inf)
    threading.Timer(1, getattr(worker.store, asked), [worker.job_id]).start()
    worker.supervisor.work(worker.job_id, 1)
    assert worker.status == status


def test_nothing_is_left_of_the_cut_off_write_of_a_job_that_has_failed(
    worker: Worker, child_runs: Callable[[str], None]
) -> None:
    half = f"jobs/{worker.job_id}/step-3/state/arrays.safetensors"
    write = f"import pathlib; path = pathlib.Path({str(worker.storage.root)!r}) / {half!r}\n"
    write += "path.parent.mkdir(parents=True); path.write_bytes(b'half')\n"
    failed = {"kind": "failed", "error": {"code": "nan_loss", "message": "NaN"}, "retryable": False}
    child_runs(READ_ASSIGNMENT + write + f"print({json.dumps(failed)!r}, flush=True)")
    worker.supervisor.work(worker.job_id, 1)
    assert worker.status == "failed"
    assert worker.storage.folders(f"jobs/{worker.job_id}") == set()


def test_files_with_which_a_fork_has_yet_to_begin_outlive_the_end_of_the_job(
    worker: Worker, child_runs: Callable[[str], None]
) -> None:
    attempt = Attempt(worker.database, worker.job_id, 1)
    assert attempt.claim("w0") is not None
    trained = worker.publish(9)
    attempt.commit(trained, keep=2)
    worker.store.submit(SPEC, origin=worker.store.checkpoint(worker.job_id, "latest"))
    attempt.release()
    evaluated = worker.publish(10, is_final=True) | {"step": 9}
    child_runs(says(saved(evaluated), {"kind": "finished"}))
    worker.supervisor.work(worker.job_id, 2)
    assert worker.status == "succeeded"
    assert worker.storage.has_published(trained["key"])


def test_what_a_write_that_was_cut_off_in_its_first_file_has_left_is_deleted(
    worker: Worker, child_runs: Callable[[str], None]
) -> None:
    # As the store names a file while it writes it; such files are in no listing of keys.
    left = worker.settings.data_dir / "storage" / "jobs" / worker.job_id / "step-1" / "saes" / "cfg.json#1"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"{")
    child_runs(says(saved(worker.publish(9, is_final=True)), {"kind": "finished"}))
    worker.supervisor.work(worker.job_id, 1)
    assert not left.parents[1].exists()
