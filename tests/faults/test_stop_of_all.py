"""A signal to every process at once, as systemd, Slurm and a logout send it."""

import json
import os
import signal
from pathlib import Path
from typing import Any

from tests.faults import invariants
from tests.faults.preload import python_path
from tests.service import Service, children_of, worker_of


def test_a_job_whose_training_process_is_signalled_too_is_saved_where_it_is_and_costs_no_crash(
    factored: dict[str, Any], tmp_path: Path, compiled: dict[str, str]
) -> None:
    log = tmp_path / "steps.jsonl"
    inside = json.dumps({"module": "workers.job_process", "log": str(log)})
    service = Service(tmp_path, PYTHONPATH=python_path(), FAULTS_INSIDE=inside, **compiled)
    try:
        job = service.started(factored)
        worker, (child,) = worker_of(job), children_of(worker_of(job))
        for pid, number in ((child, signal.SIGINT), (child, signal.SIGTERM), (worker, signal.SIGTERM)):
            os.kill(pid, number)
        ended = service.ended(job)
        assert (ended.status, ended.attempt) == ("succeeded", 2)
        events = service.client.events(job.id)
        reasons = [event.data["status_reason"] for event in events if event.type == "status"]
        assert [reason for reason in reasons if reason is not None] == ["preempted"]
        assert len(log.read_text().splitlines()) == 1000, "a step was trained twice"
        invariants.check(service, ended, factored)
    finally:
        service.interrupt()
