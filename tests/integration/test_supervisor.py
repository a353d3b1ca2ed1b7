"""The worker's side of an attempt, with small programs in place of the training process."""

import io
import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from sae_service.errors import DataNotFound, ModelNotFound, NonFiniteLoss, StorageFailure
from sae_service.jobs.attempts import Attempt
from sae_service.jobs.database import Database
from sae_service.jobs.migration import migrate
from sae_service.jobs.presence import Presence
from sae_service.jobs.store import JobStore
from sae_service.jobs.sweep import Sweep
from sae_service.settings import Settings
from sae_service.storage import Storage
from workers import child as child_module
from workers import job_process
from workers.job_process import failure
from workers.supervisor import Supervisor

SPEC: dict[str, Any] = {"queue": "default", "priority": 0, "metadata": {}, "saes": [], "checkpoints": {"keep": 2}}
READ_ASSIGNMENT = "import json, sys, time; sys.stdin.buffer.raw.readline()\n"


class Worker:
    """A supervisor with a job that waits for it."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(data_dir=folder, lease_s=2)
        self.database = Database(self.settings.resolved_database_url())
        migrate(self.database)
        Presence(self.database, "w1", "default", 1, self.settings.lease_s).renew()
        self.store = JobStore(self.database)
        self.job_id = self.store.submit(SPEC)[0].id
        self.supervisor = Supervisor(self.database, self.settings, "w1", None)
        self.storage = Storage(self.settings.resolved_storage_url())

    @property
    def status(self) -> str:
        return self.store.get(self.job_id).status

    def publish(self, step: int, is_final: bool = False) -> dict[str, Any]:
        key = f"jobs/{self.job_id}/step-{step}"
        files = self.storage.publish(key, {"saes/a/cfg.json": b"{}"})
        return {"key": key, "step": step, "tokens": step, "is_final": is_final, "files": files, "metrics": {}}


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    return Worker(tmp_path)


@pytest.fixture
def child_runs(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def replace(program: str) -> None:
        def popen(_: list[str], **options: Any) -> Any:
            return real([sys.executable, "-c", program], **options)

        monkeypatch.setattr(child_module.subprocess, "Popen", popen)

    real = subprocess.Popen
    return replace


def eventually(condition: Callable[[], bool]) -> None:
    before = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < before
        time.sleep(0.05)


def says(*messages: dict[str, Any]) -> str:
    return READ_ASSIGNMENT + "\n".join(f"print({json.dumps(message)!r}, flush=True)" for message in messages)


def test_an_attempt_that_was_held_up_deletes_nothing_of_the_next_one(
    worker: Worker, child_runs: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = worker.supervisor._storage.folders
    following: list[dict[str, Any]] = []

    def folders(prefix: str) -> set[str]:
        if not following:
            now = [0.0]
            sweep = Sweep(worker.database, lease_s=60, clock=lambda: now[0])
            for now[0] in (0, 20, 40, 60):
                sweep.look()
            attempt = Attempt(worker.database, worker.job_id, 2)
            assert attempt.claim("w2") is not None
            following.append(worker.publish(5))
            attempt.commit(following[0], keep=2)
        return listed(prefix)

    monkeypatch.setattr(worker.supervisor._storage, "folders", folders)
    child_runs(READ_ASSIGNMENT + "time.sleep(60)")
    worker.supervisor.work(worker.job_id, 1)
    assert worker.storage.read_published(following[0]["key"]) == {"saes/a/cfg.json": b"{}"}


def test_a_job_that_is_cancelled_as_its_final_checkpoint_comes_is_cancelled_at_once(
    worker: Worker, child_runs: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = worker.supervisor._record

    def cancelled_meanwhile(*arguments: Any) -> None:
        worker.store.cancel(worker.job_id)
        record(*arguments)

    monkeypatch.setattr(worker.supervisor, "_record", cancelled_meanwhile)
    final = worker.publish(9, is_final=True)
    monkeypatch.setattr(worker.supervisor._storage, "folders", lambda prefix: set())
    child_runs(says({"kind": "checkpoint", "checkpoint": final}, {"kind": "finished"}))
    worker.supervisor.work(worker.job_id, 1)
    assert worker.status == "cancelled"


def test_a_storage_that_hangs_in_deleting_holds_no_job_up(
    worker: Worker, child_runs: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = threading.Event()
    monkeypatch.setattr(worker.supervisor._storage, "delete", lambda key: hangs.wait(60))
    steps = [{"kind": "checkpoint", "checkpoint": worker.publish(step)} for step in range(1, 5)]
    monkeypatch.setattr(worker.supervisor._storage, "folders", lambda prefix: set())
    child_runs(says(*steps) + "\ntime.sleep(60)")
    thread = threading.Thread(target=worker.supervisor.work, args=(worker.job_id, 1))
    thread.start()
    eventually(lambda: [found.step for found in worker.store.checkpoints(worker.job_id)] == [4, 3])
    worker.store.cancel(worker.job_id)
    eventually(lambda: worker.status == "cancelled")
    hangs.set()
    thread.join()


def test_a_process_is_said_to_hang_only_if_it_shows_no_life(
    worker: Worker, child_runs: Callable[[str], None]
) -> None:
    worker.supervisor._settings = worker.settings.model_copy(update={"hang_s": 2.0})
    alive = json.dumps({"kind": "alive"})
    child_runs(READ_ASSIGNMENT + f"for _ in range(20): print({alive!r}, flush=True); time.sleep(0.2)\ntime.sleep(60)")
    began = time.monotonic()
    worker.supervisor.work(worker.job_id, 1)
    assert time.monotonic() - began >= 19 * 0.2 + 2, "the last sign came after 19 pauses"
    assert any("has said nothing for 2 s" in event.message for event in worker.store.events(worker.job_id))


def test_signs_of_life_reach_the_worker_only_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(job_process, "time", SimpleNamespace(monotonic=lambda: now[0]))
    channel = io.StringIO()
    report = job_process.Report(channel)
    for _ in range(100):
        now[0] += 0.3
        report.alive()
    assert 2 <= len(channel.getvalue().splitlines()) <= 30 / job_process.ALIVE_S


def away(worker: Worker, monkeypatch: pytest.MonkeyPatch, times: float) -> None:
    """Lets the storage fail for so many questions."""
    listed, asked = worker.supervisor._storage.folders, []

    def folders(prefix: str) -> set[str]:
        asked.append(prefix)
        if len(asked) <= times:
            raise StorageFailure("cannot list jobs: connection refused.")
        return listed(prefix)

    monkeypatch.setattr(worker.supervisor._storage, "folders", folders)


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
    child_runs(says({"kind": "checkpoint", "checkpoint": evaluated}, {"kind": "finished"}))
    worker.supervisor.work(worker.job_id, 2)
    assert worker.status == "succeeded"
    assert worker.storage.has_published(trained["key"])


def test_a_process_that_does_not_listen_does_not_hold_up_its_worker(
    worker: Worker, child_runs: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[child_module.Child] = []
    original = child_module.Child.__init__

    def full(self: child_module.Child, *arguments: Any) -> None:
        original(self, *arguments)
        started.append(self)
        # Stands for the renewals of an hour: as much as the pipe can hold.
        writer = threading.Thread(target=lambda: [self.say({"kind": "renewed"}) for _ in range(10_000)], daemon=True)
        writer.start()
        writer.join(2)

    monkeypatch.setattr(child_module.Child, "__init__", full)
    child_runs(READ_ASSIGNMENT + "time.sleep(60)")
    working = threading.Thread(target=worker.supervisor.work, args=(worker.job_id, 1), daemon=True)
    working.start()
    try:
        eventually(lambda: bool(started) and worker.status == "running")
        worker.store.cancel(worker.job_id)
        working.join(20)
        assert not working.is_alive()
        assert worker.status == "cancelled"
    finally:
        started[0].kill()


def test_an_outage_that_outlasts_the_lease_is_a_preemption_and_no_crash(
    worker: Worker, child_runs: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    record, begin = worker.supervisor._record, worker.database.engine.begin

    def in_an_outage(*arguments: Any) -> None:
        over = time.monotonic() + 2.5

        def away() -> Any:
            if time.monotonic() < over:
                raise OperationalError("UPDATE", {}, Exception("the server is gone"))
            return begin()

        monkeypatch.setattr(worker.database.engine, "begin", away)
        record(*arguments)

    monkeypatch.setattr(worker.supervisor, "_record", in_an_outage)
    child_runs(says({"kind": "event", "level": "info", "message": "news"}) + "\ntime.sleep(60)")
    worker.supervisor.work(worker.job_id, 1)
    monkeypatch.setattr(worker.database.engine, "begin", begin)
    job = worker.store.get(worker.job_id)
    assert (job.status, job.status_reason) == ("queued", "preempted")


def test_what_a_write_that_was_cut_off_in_its_first_file_has_left_is_deleted(
    worker: Worker, child_runs: Callable[[str], None]
) -> None:
    # As the store names a file while it writes it; such files are in no listing of keys.
    left = worker.settings.data_dir / "storage" / "jobs" / worker.job_id / "step-1" / "saes" / "cfg.json#1"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"{")
    child_runs(says({"kind": "checkpoint", "checkpoint": worker.publish(9, is_final=True)}, {"kind": "finished"}))
    worker.supervisor.work(worker.job_id, 1)
    assert not left.parents[1].exists()


def test_a_process_that_has_heard_nothing_for_half_a_lease_is_no_crash(
    worker: Worker, child_runs: Callable[[str], None]
) -> None:
    child_runs(READ_ASSIGNMENT + f"sys.exit({child_module.ORPHANED})")
    worker.supervisor.work(worker.job_id, 1)
    job = worker.store.get(worker.job_id)
    assert (job.status, job.status_reason) == ("queued", "preempted")


def test_a_host_that_cannot_start_a_process_says_so_and_the_job_is_tried_again(worker: Worker) -> None:
    logs = worker.settings.data_dir / "logs"
    logs.write_text("in the way of the folder")
    worker.supervisor.work(worker.job_id, 1)
    job = worker.store.get(worker.job_id)
    assert (job.status, job.status_reason) == ("queued", "retry_after_crash")
    said = worker.store.events(worker.job_id)[-1].message
    assert said.startswith("The training process cannot be started: ")
    assert str(logs) in said
    assert said.endswith("(crash 1 of 3).")


def test_memory_that_does_not_suffice_is_said_even_if_the_error_is_silent() -> None:
    assert failure(MemoryError(), has_trained=False)["error"]["code"] == "out_of_memory"


@pytest.mark.parametrize("error", [DataNotFound("the hub is away"), ModelNotFound("the disk is away"), MemoryError()])
def test_what_was_there_when_a_job_began_and_is_not_now_is_tried_again(error: Exception) -> None:
    assert failure(error, has_trained=True)["retryable"]
    assert not failure(error, has_trained=False)["retryable"]


def test_a_loss_that_is_not_finite_would_come_again() -> None:
    assert not failure(NonFiniteLoss(), has_trained=True)["retryable"]


def test_an_error_that_nobody_has_foreseen_is_tried_again_and_ends_the_job_the_third_time(
    worker: Worker, child_runs: Callable[[str], None]
) -> None:
    child_runs(says(failure(RuntimeError("once in a blue moon"), has_trained=False)))
    for attempt in (1, 2, 3):
        assert worker.status == "queued"
        worker.supervisor.work(worker.job_id, attempt)
    job = worker.store.get(worker.job_id)
    assert job.error is not None
    assert (job.status, job.error.code) == ("failed", "internal")
    assert "once in a blue moon" in job.error.message
