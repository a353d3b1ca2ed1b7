"""No job is trained twice at once, by what the training processes themselves have written down."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.faults import invariants
from tests.faults.history import History
from tests.faults.preload import python_path
from tests.service import Service


def spans(log: Path) -> dict[str, list[tuple[float, float]]]:
    """For each job, when each of its processes trained its first and its last step, in order."""
    times: dict[tuple[str, int], list[float]] = defaultdict(list)
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        times[entry["job"], entry["pid"]].append(entry["t"])
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for (job, _), moments in times.items():
        found[job].append((min(moments), max(moments)))
    return {job: sorted(pairs) for job, pairs in found.items()}


def share(folder: Path, history: History, spec: dict[str, Any], n_jobs: int, settings: dict[str, str]) -> None:
    """Two workers, many jobs."""
    log = folder / "steps.jsonl"
    inside = json.dumps({"module": "workers.job_process", "log": str(log)})
    service = Service(folder, 2, PYTHONPATH=python_path(), FAULTS_INSIDE=inside, **settings)
    try:
        jobs = [service.client.submit(spec) for _ in range(n_jobs)]
        for job in jobs:
            ended = service.ended(job)
            assert (ended.status, ended.attempt) == ("succeeded", 1)
            invariants.check(service, ended, spec)
        found = spans(log)
        history.add("spans", spans=found)
        assert len(found) == n_jobs
        assert all(len(pairs) == 1 for pairs in found.values()), "a job was trained by two processes"
        n_steps = spec["stream"]["tokens"] // spec["stream"]["batch"]
        assert len(log.read_text().splitlines()) == n_jobs * n_steps, "a step was trained twice"
        weights = [invariants.hashes(service, job, folder / "weights") for job in jobs]
        assert all(hashes == weights[0] for hashes in weights)
    finally:
        service.interrupt()


def test_two_workers_share_four_jobs(history: History, quick: dict[str, Any], tmp_path: Path, compiled: dict[str, str]) -> None:
    quick["stream"]["tokens"] = 200 * 64
    share(tmp_path, history, quick, 4, compiled)


@pytest.mark.faults
def test_two_workers_share_ten_jobs(history: History, quick: dict[str, Any], tmp_path: Path, compiled: dict[str, str]) -> None:
    share(tmp_path, history, quick, 10, compiled)
