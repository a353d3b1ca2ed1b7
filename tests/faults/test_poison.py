"""A job that takes its worker down each time."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.faults import invariants
from tests.faults.history import History
from tests.faults.preload import python_path
from tests.service import Service


@pytest.mark.faults
def test_a_job_that_kills_its_worker_fails_after_three_of_them_and_another_still_runs(
    history: History, quick: dict[str, Any], tmp_path: Path, compiled: dict[str, str]
) -> None:
    inside = json.dumps({"module": "workers.job_process", "poison": "poison"})
    service = Service(tmp_path, PYTHONPATH=python_path(), FAULTS_INSIDE=inside, **compiled)
    try:
        poison = service.client.submit(quick | {"metadata": {"poison": "yes"}})
        good = service.client.submit(quick)
        ended = service.ended(poison)
        assert ended.error is not None
        history.add("ended", status=ended.status, attempts=ended.attempt, code=ended.error.code)
        assert (ended.status, ended.error.code, ended.attempt) == ("failed", "worker_crashed", 3)
        invariants.check(service, ended, quick)
        ended = service.ended(good)
        assert ended.status == "succeeded"
        invariants.check(service, ended, quick)
        invariants.check_quiet(service)
    finally:
        service.interrupt()
