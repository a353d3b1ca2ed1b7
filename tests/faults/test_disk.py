"""The disk is full, on a tmpfs of its own."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults import invariants
from tests.faults.following import Following
from tests.faults.history import History
from tests.service import Service

pytestmark = pytest.mark.faults
LEASE_S = 6


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty disk of 24 MB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a tmpfs")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Path:
    """Leaves no room on a disk. Returns the file to delete for it."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 12)):
                pass
        except OSError:
            return ballast
    raise AssertionError


def test_a_job_whose_checkpoints_find_no_room_fails_and_says_so_and_the_next_one_runs(
    disk: Path, history: History, quick: dict[str, Any], tmp_path: Path, compiled: dict[str, str]
) -> None:
    service = Service(tmp_path, SAE_SERVICE_STORAGE_URL=(disk / "storage").as_uri(), **compiled)
    try:
        job = service.started(quick)
        following = Following(service, job, quick)
        ballast = fill(disk)
        history.add("full")
        ended = service.ended(job)
        following.look()
        assert ended.error is not None
        history.add("ended", status=ended.status, attempts=ended.attempt, error=ended.error.message)
        assert (ended.status, ended.error.code) == ("failed", "storage_error")
        assert "No space left" in ended.error.message
        assert "\n" not in ended.error.message
        invariants.check(service, ended, quick, following.events)
        ballast.unlink()
        following = Following(service, service.client.submit(quick), quick)
        ended = service.ended(following.job)
        assert ended.status == "succeeded"
        invariants.check(service, ended, quick)
    finally:
        service.interrupt()


def test_a_job_goes_on_with_the_same_bytes_when_there_is_room_again(
    disk: Path, history: History, quick: dict[str, Any], tmp_path: Path, compiled: dict[str, str]
) -> None:
    service = Service(tmp_path, SAE_SERVICE_STORAGE_URL=(disk / "storage").as_uri(), **compiled)
    try:
        undisturbed = service.ended(service.client.submit(quick))
        job = service.started(quick)
        following = Following(service, job, quick)
        ballast = fill(disk)
        service.until(lambda: following.look() or following.crashes == 1)
        ballast.unlink()
        history.add("room")
        ended = service.ended(job)
        following.look()
        assert ended.status == "succeeded"
        invariants.check(service, ended, quick, following.events)
        invariants.check_nothing_left(service, job, lambda: [path.name for path in (disk / "storage" / "jobs" / job.id).iterdir()])
        weights = tmp_path / "weights"
        assert invariants.hashes(service, ended, weights) == invariants.hashes(service, undisturbed, weights)
    finally:
        service.interrupt()


def test_a_database_that_finds_no_room_is_an_outage_and_no_crash(
    disk: Path, history: History, quick: dict[str, Any], tmp_path: Path, compiled: dict[str, str]
) -> None:
    data_dir = disk / "data"
    data_dir.mkdir()
    service = Service(data_dir, SAE_SERVICE_STORAGE_URL=(tmp_path / "storage").as_uri(), **compiled)
    try:
        job = service.started(quick)
        following = Following(service, job, quick)
        ballast = fill(disk)
        history.add("full")
        time.sleep(2 * LEASE_S)
        answers = [httpx.post(f"{service.url}/v1/jobs", json=quick, timeout=60) for _ in range(5)]
        assert {answer.status_code for answer in answers} <= {201, 503}
        assert (answers[-1].status_code, answers[-1].headers["Retry-After"]) == (503, "5")
        ballast.unlink()
        history.add("room")
        ended = service.ended(job)
        following.look()
        history.add("ended", status=ended.status, attempts=ended.attempt)
        assert ended.status == "succeeded"
        assert not any("crash " in event.message for event in following.events)
        invariants.check(service, ended, quick, following.events)
    finally:
        service.interrupt()
