"""A worker that stands still, is taken for dead, and wakes up again."""

import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.faults import invariants
from tests.faults.following import Following
from tests.faults.history import History
from tests.faults.processes import children
from tests.service import Service, children_of, is_alive, worker_of

pytestmark = pytest.mark.faults


def stop_between_writes(pid: int, database: Path) -> None:
    """Stops a process; one that holds SQLite's lock meanwhile would keep everybody from writing, and is stopped again."""
    while True:
        os.kill(pid, signal.SIGSTOP)
        # On a busy machine a thread that is on its way through the kernel may yet get the lock there.
        while not stands_still(pid):
            time.sleep(0.01)
        with closing(sqlite3.connect(database, timeout=1, isolation_level=None)) as other:
            try:
                other.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                os.kill(pid, signal.SIGCONT)
                time.sleep(0.3)
            else:
                other.execute("ROLLBACK")
                return


def stands_still(pid: int) -> bool:
    """Whether every thread of a process is stopped."""
    threads = Path(f"/proc/{pid}/task").glob("*/stat")
    return all(thread.read_text().rpartition(")")[2].split()[0] == "T" for thread in threads)


def test_a_worker_that_wakes_up_after_its_job_was_taken_over_is_refused(
    history: History, quick: dict[str, Any], tmp_path: Path, compiled: dict[str, str]
) -> None:
    service = Service(tmp_path, 2, **compiled)
    try:
        # Long enough to be stopped in its middle on a busy machine too.
        quick["stream"]["tokens"] *= 4
        undisturbed = service.ended(service.client.submit(quick))
        quick["metadata"] = {"turn": "2"}
        job = service.started(quick)
        following = Following(service, job, quick)
        zombie = worker_of(job)
        (child,) = children_of(zombie)
        stop_between_writes(zombie, tmp_path / "service.db")
        history.add("stop", pid=zombie, child=child)
        assert service.client.job(job.id).status == "running"
        service.until(lambda: not is_alive(child))
        service.until(lambda: invariants.worker_pid(service.client.job(job.id)) not in (zombie, None))
        time.sleep(history.random.uniform(0, 5))
        os.kill(zombie, signal.SIGCONT)
        history.add("continue", pid=zombie)
        ended = service.ended(job)
        following.look()
        assert (ended.status, ended.attempt) == ("succeeded", 2)
        invariants.check(service, ended, quick, following.events)
        weights = tmp_path / "weights"
        assert invariants.hashes(service, ended, weights) == invariants.hashes(service, undisturbed, weights)
        invariants.check_quiet(service)
        jobs = [service.client.submit(quick) for _ in range(3)]
        ended_by = {worker_of(service.ended(job)) for job in jobs}
        assert zombie in ended_by, "the worker that woke up works on"
    finally:
        service.interrupt()


def test_a_training_process_that_stands_still_ends_with_its_job_that_is_cancelled(
    history: History, quick: dict[str, Any], tmp_path: Path, compiled: dict[str, str]
) -> None:
    service = Service(tmp_path, **compiled)
    try:
        quick["stream"]["tokens"] *= 5
        job = service.started(quick)
        (child,) = children(tmp_path)
        os.kill(child.pid, signal.SIGSTOP)
        history.add("stop", pid=child.pid)
        service.client.cancel(job.id)
        ended = service.ended(job)
        assert ended.status == "cancelled"
        assert not is_alive(child.pid)
        invariants.check(service, ended, quick)
    finally:
        service.interrupt()


def test_a_training_process_that_stands_still_is_ended_and_its_job_goes_on(
    history: History, quick: dict[str, Any], tmp_path: Path, compiled: dict[str, str]
) -> None:
    service = Service(tmp_path, SAE_SERVICE_HANG_S="60", **compiled)
    try:
        job = service.started(quick)
        (child,) = children(tmp_path)
        os.kill(child.pid, signal.SIGSTOP)
        history.add("stop", pid=child.pid)
        ended = service.ended(job)
        assert (ended.status, ended.attempt) == ("succeeded", 2)
        assert not is_alive(child.pid)
        assert any("has said nothing for" in event.message for event in service.client.events(job.id))
        invariants.check(service, ended, quick)
    finally:
        service.interrupt()
