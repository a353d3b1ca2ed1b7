"""A crash between each pair of write, link (the rename of a file that must be new), fsync, report and commit."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.faults import invariants
from tests.faults.following import Following
from tests.faults.history import History
from tests.faults.preload import compiled_library, python_path
from tests.service import Service

CHILD, WORKER = "workers.job_process", "workers"
# The process, its system call, the path that the call is about, and which of these calls. A checkpoint of the quick job
# has 8 files and a manifest; five checkpoints are over when the 50th file comes.
CALLS = [
    pytest.param(CHILD, "write", "storage/jobs/", 50, id="before-a-file-is-written"),
    pytest.param(CHILD, "link", "storage/jobs/", 50, id="between-write-and-link"),
    pytest.param(CHILD, "unlink", "storage/jobs/", 50, id="between-link-and-removal-of-the-other-name"),
    pytest.param(CHILD, "fsync", "arrays.safetensors", 6, id="between-link-and-fsync"),
    pytest.param(CHILD, "fsync", "storage", 260, id="between-fsync-of-a-file-and-of-a-folder"),
    pytest.param(CHILD, "write", "manifest.json", 6, id="between-the-files-and-their-manifest"),
    pytest.param(CHILD, "link", "manifest.json", 6, id="between-write-and-link-of-the-manifest"),
    pytest.param(CHILD, "fsync", "manifest.json", 6, id="between-link-and-fsync-of-the-manifest"),
    pytest.param(WORKER, "write", "service.db-wal", 120, id="before-a-transaction-is-written"),
    pytest.param(WORKER, "fsync", "service.db-wal", 40, id="between-write-and-fsync-of-a-transaction"),
    pytest.param(WORKER, "unlink", "storage/jobs/", 4, id="while-a-replaced-checkpoint-is-deleted"),
]
# The same for functions: what happens between processes, or in the middle of the database's commit.
FUNCTIONS = [
    pytest.param(CHILD, "sae_service.storage.objects:Storage.publish", "after", 6, id="between-the-last-fsync-and-the-report"),
    pytest.param(WORKER, "sae_service.jobs.attempts:Attempt.commit", "before", 6, id="between-the-report-and-the-commit"),
    pytest.param(WORKER, "sae_service.jobs.attempts:Attempt.commit", "after", 6, id="between-the-commit-and-what-follows"),
    pytest.param(WORKER, "sae_service.jobs.attempts:Attempt.commit", "before", 20, id="before-the-commit-of-the-end"),
    pytest.param(WORKER, "sae_service.jobs.attempts:Attempt.commit", "after", 20, id="after-the-commit-of-the-end"),
    pytest.param(WORKER, "sae_service.jobs.attempts:Attempt.claim", "before", 1, id="between-the-queue-and-the-claim"),
    pytest.param(WORKER, "sae_service.jobs.attempts:Attempt.claim", "after", 1, id="between-the-claim-and-the-first-step"),
    pytest.param(WORKER, "workers.child:Child.__init__", "after", 1, id="as-the-training-process-starts"),
]


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, str]:
    """The hashes of the quick job, filled in by the first test that needs them."""
    return {}


def survive(folder: Path, spec: dict[str, Any], undisturbed: dict[str, str], history: History, settings: dict[str, str]) -> None:
    """One job through one crash; the first job of the service is the one that is hit."""
    once = folder / "crashed"
    service = Service(folder, **settings)
    try:
        following = Following(service, service.client.submit(spec), spec)
        ended = service.ended(following.job)
        following.look()
        assert once.exists(), "the crash was never reached"
        history.add("crash", pid=once.read_text(), attempts=ended.attempt)
        assert ended.status == "succeeded", ended
        invariants.check(service, ended, spec, following.events)
        invariants.check_quiet(service)
        jobs = folder / "storage" / "jobs" / ended.id
        invariants.check_nothing_left(service, ended, lambda: [path.name for path in jobs.iterdir()])
        found = invariants.hashes(service, ended, folder / "weights")
        if not undisturbed:
            undisturbed |= invariants.hashes(service, service.ended(service.client.submit(spec)), folder / "weights")
        assert found == undisturbed
    finally:
        service.interrupt()


@pytest.mark.faults
@pytest.mark.parametrize(("module", "call", "path", "count"), CALLS)
def test_a_crash_at_a_system_call_changes_nothing(
    module: str, call: str, path: str, count: int, history: History, quick: dict[str, Any], tmp_path: Path,
    compiled: dict[str, str], undisturbed: dict[str, str],
) -> None:  # fmt: skip
    settings = {
        "LD_PRELOAD": compiled_library("crash", tmp_path), "FAULTS_CRASH_MODULE": module, "FAULTS_CRASH_CALL": call,
        "FAULTS_CRASH_PATH": path, "FAULTS_CRASH_COUNT": str(count), "FAULTS_CRASH_ONCE": str(tmp_path / "crashed"),
    }  # fmt: skip
    history.add("failpoint", module=module, call=call, path=path, count=count)
    survive(tmp_path, quick, undisturbed, history, compiled | settings)


@pytest.mark.faults
@pytest.mark.parametrize(("module", "at", "when", "call"), FUNCTIONS)
def test_a_crash_beside_a_function_changes_nothing(
    module: str, at: str, when: str, call: int, history: History, quick: dict[str, Any], tmp_path: Path,
    compiled: dict[str, str], undisturbed: dict[str, str],
) -> None:  # fmt: skip
    crash = {"at": at, "when": when, "call": call, "once": str(tmp_path / "crashed")}
    history.add("failpoint", module=module, **crash)
    settings = {"PYTHONPATH": python_path(), "FAULTS_INSIDE": json.dumps({"module": module, "crash": crash})}
    survive(tmp_path, quick, undisturbed, history, compiled | settings)
