"""Random SIGKILLs over a set of jobs, on both databases."""

from pathlib import Path
from typing import Any

import pytest

from tests.faults import every_path
from tests.faults.conftest import kills_of_this_run
from tests.faults.history import History
from tests.faults.random_kills import RandomKills
from tests.faults.results import KEEP_ALL, result
from tests.postgres import Postgres
from tests.service import Service


def suffer(
    service: Service, history: History, specs: list[dict[str, Any]], n_kills: int, folder: Path, at_once: int = 5
) -> None:
    """Trains each job once in peace and without a cache, a set of them under kills, and one from what these have cached."""
    try:
        calm = [service.client.submit(every_path.with_cache(spec, "off")) for spec in specs]
        assert [service.ended(job).status for job in calm] == ["succeeded"] * len(calm)
        undisturbed = [result(service, job, folder) for job in calm]
        for spec, job in zip(specs, calm, strict=True):
            every_path.check_saes(service, job, spec)
        history.add("undisturbed", hashes=[found.weights for found in undisturbed])
        kills = RandomKills(service, history, specs, at_once)
        kills.run(n_kills)
        kills.check(undisturbed, folder)
        for spec, expected in zip(specs, undisturbed, strict=True):
            if every_path.is_cached(spec):
                history.add("cached", share=every_path.check_cache(service, spec, expected, folder))
        history.add("summary", **kills.summary())
        print(f"\n{kills.summary()}, all alike; history: {history.path}")  # noqa: T201
    finally:
        service.interrupt()


def test_a_few_kills_do_not_change_any_checkpoint(
    history: History, in_slots: dict[str, Any], tmp_path: Path, compiled: dict[str, str]
) -> None:
    in_slots["checkpoints"]["keep"] = KEEP_ALL
    service = Service(tmp_path, 2, **compiled)
    suffer(service, history, [in_slots], 5, tmp_path / "weights", at_once=2)


@pytest.mark.faults
def test_many_kills_do_not_change_any_checkpoint_on_sqlite(
    history: History, variety: list[dict[str, Any]], tmp_path: Path, compiled: dict[str, str]
) -> None:
    service = Service(tmp_path, 2, **compiled | every_path.small_chunks())
    suffer(service, history, variety, kills_of_this_run(), tmp_path / "weights")


@pytest.mark.faults
def test_many_kills_do_not_change_any_checkpoint_on_postgresql(
    history: History, variety: list[dict[str, Any]], tmp_path: Path, postgres: Postgres, compiled: dict[str, str]
) -> None:
    service = Service(tmp_path, 2, SAE_SERVICE_DATABASE_URL=postgres.url, **compiled | every_path.small_chunks())
    suffer(service, history, variety, kills_of_this_run(), tmp_path / "weights")
