"""The wall clock of a service's machine is set forward and back in the middle of a job."""

import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults import invariants
from tests.faults.following import Following
from tests.faults.history import History
from tests.faults.preload import compiled_library
from tests.service import Service

DAY_S = 24 * 3600


@pytest.mark.faults
def test_a_step_of_the_clock_costs_no_job_its_worker(
    history: History, quick: dict[str, Any], tmp_path: Path, compiled: dict[str, str]
) -> None:
    offset = tmp_path / "offset"
    offset.write_text("0")
    service = Service(tmp_path, LD_PRELOAD=compiled_library("clock", tmp_path), FAULTS_CLOCK=str(offset), **compiled)
    try:
        undisturbed = service.ended(service.client.submit(quick))
        job = service.started(quick)
        following = Following(service, job, quick)
        for step in (DAY_S, -DAY_S, 0):
            # Replaced as a whole: a reader in between would see the file empty.
            (tmp_path / "next").write_text(str(step))
            (tmp_path / "next").replace(offset)
            history.add("clock", offset=step)
            time.sleep(2)
            following.look()
        ended = service.ended(job)
        following.look()
        assert (ended.status, ended.attempt) == ("succeeded", 1)
        dates = {round((event.created_at - time.time()) / DAY_S) for event in following.events}
        assert dates & {1, -1}, "the clock that the service reads was never stepped"
        invariants.check(service, ended, quick, following.events)
        weights = tmp_path / "weights"
        assert invariants.hashes(service, ended, weights) == invariants.hashes(service, undisturbed, weights)
        job = service.client.submit(quick)
        assert service.ended(job).status == "succeeded"
    finally:
        service.interrupt()
