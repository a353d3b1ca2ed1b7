"""One job is killed again and again, and each of its checkpoints is that of a job that was left alone."""

from pathlib import Path
from typing import Any

import pytest

from tests.faults import every_path
from tests.faults.conftest import jobs_of_this_run
from tests.faults.history import History
from tests.faults.repeated_kills import RepeatedKills
from tests.faults.results import result
from tests.service import Service


def suffer(
    service: Service, history: History, spec: dict[str, Any], n_jobs: int, n_kills: int, longest_pause_s: float
) -> None:
    """Trains a job in peace and without a cache, beside it others with kills, and then one from what these have cached."""
    try:
        calm = service.client.submit(every_path.with_cache(spec, "off"))
        kills = RepeatedKills(service, history, spec, 2, longest_pause_s)
        kills.run(n_jobs, n_kills)
        assert (service.ended(calm).status, service.client.job(calm.id).attempt) == ("succeeded", 1)
        folder = service.data_dir / "weights"
        undisturbed = result(service, calm, folder)
        kills.check([undisturbed], folder)
        shares = [every_path.share_from_cache(service, following.job) for following in kills.jobs]
        assert max(shares) > 0, "no attempt went on from what another one had cached"
        history.add("cached", of_killed=shares, of_next=every_path.check_cache(service, spec, undisturbed, folder))
        history.add("summary", **kills.summary())
        print(f"\n{kills.summary()}, all alike; history: {history.path}")  # noqa: T201
    finally:
        service.interrupt()


def test_a_job_on_long_documents_that_is_killed_repeatedly_has_the_checkpoints_of_one_that_was_not(
    history: History, long_text: dict[str, Any], tmp_path: Path, compiled: dict[str, str]
) -> None:
    # What costs time is to compile, not to train.
    long_text["saes"].pop()
    service = Service(tmp_path, 2, **compiled | every_path.small_chunks())
    suffer(service, history, long_text, 1, 3, 0.5)


@pytest.mark.faults
def test_many_jobs_that_are_killed_repeatedly_have_the_checkpoints_of_one_that_was_not(
    history: History, demo_text: dict[str, Any], tmp_path: Path, compiled: dict[str, str]
) -> None:
    service = Service(tmp_path, 2, **compiled | every_path.small_chunks())
    suffer(service, history, demo_text, jobs_of_this_run(), 5, 1.0)
