"""Random SIGKILLs over a set of jobs, on both databases."""

from pathlib import Path
from typing import Any

import pytest

from tests.faults import invariants
from tests.faults.conftest import kills_of_this_run
from tests.faults.history import History
from tests.faults.kills import Kills
from tests.postgres import Postgres
from tests.service import Service


def suffer(
    service: Service, history: History, specs: list[dict[str, Any]], n_kills: int, folder: Path, at_once: int = 5
) -> None:
    """Trains each job once in peace, and then a set of them under kills."""
    try:
        calm = [service.client.submit(spec) for spec in specs]
        undisturbed = {}
        for index, job in enumerate(calm):
            assert service.ended(job).status == "succeeded"
            undisturbed[index] = invariants.hashes(service, job, folder)
        history.add("undisturbed", hashes=undisturbed)
        kills = Kills(service, history, specs, at_once)
        kills.run(n_kills)
        kills.check(undisturbed, folder)
        history.add("summary", **kills.summary())
        print(f"\n{kills.summary()}, all weights alike; history: {history.path}")  # noqa: T201
    finally:
        service.interrupt()


def test_a_few_kills_do_not_change_the_bytes(
    history: History, quick: dict[str, Any], tmp_path: Path, compiled: dict[str, str]
) -> None:
    quick["stream"]["tokens"] = 600 * 64
    service = Service(tmp_path, 2, **compiled)
    suffer(service, history, [quick], 5, tmp_path / "weights", at_once=2)


@pytest.mark.faults
def test_many_kills_do_not_change_the_bytes_on_sqlite(
    history: History, variety: list[dict[str, Any]], tmp_path: Path, compiled: dict[str, str]
) -> None:
    service = Service(tmp_path, 2, **compiled)
    suffer(service, history, variety, kills_of_this_run(), tmp_path / "weights")


@pytest.mark.faults
def test_many_kills_do_not_change_the_bytes_on_postgresql(
    history: History, variety: list[dict[str, Any]], tmp_path: Path, postgres: Postgres, compiled: dict[str, str]
) -> None:
    service = Service(tmp_path, 2, SAE_SERVICE_DATABASE_URL=postgres.url, **compiled)
    suffer(service, history, variety, kills_of_this_run(), tmp_path / "weights")
