"""How attempts whose worker is gone are found, and no others, on SQLite and on PostgreSQL."""

from contextlib import nullcontext

import pytest

from sae_service.errors import LeaseLost, ServiceUnavailable
from sae_service.jobs import queue
from sae_service.jobs.attempts import Attempt
from sae_service.jobs.database import Database
from sae_service.jobs.store import JobStore
from tests.attempts import checkpoint, claimed
from tests.looks import Looks


@pytest.fixture
def looks(database: Database) -> Looks:
    return Looks(database)


def test_an_attempt_without_a_sign_of_life_is_lost_and_can_no_longer_write(
    database: Database, store: JobStore, looks: Looks
) -> None:
    attempt = claimed(database, store)
    looks.at(0, 20, 40, 59)
    assert store.get(attempt.job_id).status == "running"
    looks.at(60)
    assert (store.get(attempt.job_id).status, store.get(attempt.job_id).attempt) == ("queued", 2)
    for write in (attempt.renew, attempt.release, attempt.cancel, lambda: attempt.event("info", "I live")):
        with pytest.raises(LeaseLost):
            write()
    with pytest.raises(LeaseLost):
        attempt.commit(checkpoint(5) | {"key": "k/zombie"}, keep=1)


def test_a_worker_that_is_ended_before_it_has_saved_its_job_is_no_crash(
    database: Database, store: JobStore, looks: Looks
) -> None:
    attempt = claimed(database, store)
    attempt.renew(is_stopping=True)
    assert store.get(attempt.job_id).status_reason == "worker_stopping"
    assert looks.statuses(store, attempt.job_id, 0, 20, 40, 60)[-1] == "queued"
    assert store.get(attempt.job_id).status_reason == "preempted"
    again = Attempt(database, attempt.job_id, 2)
    assert again.claim("worker-1") is not None
    assert store.get(attempt.job_id).status_reason is None


def test_a_cancel_outlives_a_worker_that_is_told_to_stop_and_ended(
    database: Database, store: JobStore, looks: Looks
) -> None:
    attempt = claimed(database, store)
    attempt.renew(is_stopping=True)
    store.cancel(attempt.job_id)
    assert looks.statuses(store, attempt.job_id, 0, 20, 40, 60)[-1] == "cancelled"


def test_an_attempt_that_renews_is_never_lost(database: Database, store: JobStore, looks: Looks) -> None:
    attempt = claimed(database, store)
    for looks.now in range(0, 600, 25):
        attempt.renew()
        looks.look()
    assert store.get(attempt.job_id).status == "running"


def test_an_outage_in_the_middle_of_a_look_is_no_workers_fault(
    database: Database, store: JobStore, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = claimed(database, store)
    looks.look()
    begun = looks._queue.begun

    def waits_for_the_database() -> list[queue.Begun]:
        looks.now += 100
        return begun()

    monkeypatch.setattr(looks._queue, "begun", waits_for_the_database)
    looks.look()
    assert store.get(attempt.job_id).status == "running"


@pytest.mark.parametrize("answers", [True, False])
def test_an_outage_before_a_look_is_no_workers_fault(
    database: Database, store: JobStore, looks: Looks, answers: bool
) -> None:
    attempt = claimed(database, store)
    looks.look()

    def after_a_while() -> bool:
        looks.now += 59
        if not answers:
            raise ServiceUnavailable("the database is away")
        return True

    with nullcontext() if answers else pytest.raises(ServiceUnavailable):
        looks.look(after_a_while)
    for looks.now in (60, 80, 100, 118):
        looks.look()
        assert store.get(attempt.job_id).status == "running"
    looks.at(120)
    assert store.get(attempt.job_id).status == "queued"


def test_a_database_that_answers_but_takes_nothing_is_no_workers_fault(
    database: Database, store: JobStore, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = claimed(database, store)
    looks.at(0, 20, 40)

    def disk_full(job_id: str, sign: tuple[int, int]) -> None:
        raise ServiceUnavailable("the disk is full")

    looks.now = 60
    with monkeypatch.context() as full:
        full.setattr(looks, "_declare_lost", disk_full)
        with pytest.raises(ServiceUnavailable):
            looks.look()
    assert looks.statuses(store, attempt.job_id, 61, 80, 100, 120, 121) == ["running"] * 4 + ["queued"]


def test_a_look_that_fails_for_whatever_reason_makes_nobody_look_older(
    database: Database, store: JobStore, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = claimed(database, store)
    looks.at(0, 20)
    looks.now = 40
    with monkeypatch.context() as broken:
        broken.setattr(looks, "_taken", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            looks.look()
    assert looks.statuses(store, attempt.job_id, 60, 80, 100, 119, 120) == ["running"] * 4 + ["queued"]


def test_a_service_that_was_frozen_as_a_whole_loses_no_job(
    database: Database, store: JobStore, looks: Looks
) -> None:
    attempt = claimed(database, store)
    looks.at(0, 20, 1000, 1020, 1040)
    attempt.renew()
    looks.at(1060, 1080, 1100, 1119)
    assert store.get(attempt.job_id).status == "running"


def test_a_freeze_in_the_middle_of_a_look_loses_no_job(
    database: Database, store: JobStore, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = claimed(database, store)
    looks.at(0, 20)
    before = iter([40.0, 40.0])
    monkeypatch.setattr(looks, "_clock", lambda: next(before, 1000.0))
    looks.look()
    assert store.get(attempt.job_id).status == "running"


def test_a_job_that_was_being_cancelled_when_its_worker_died_is_cancelled(
    database: Database, store: JobStore, looks: Looks
) -> None:
    attempt = claimed(database, store)
    store.cancel(attempt.job_id)
    looks.at(0, 20, 40, 60)
    assert store.get(attempt.job_id).status == "cancelled"


def test_a_worker_that_is_gone_is_found_by_looks_that_all_take_long(
    database: Database, store: JobStore, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = claimed(database, store)
    begun = looks._queue.begun

    def slow() -> list[queue.Begun]:
        looks.now += 40
        return begun()

    monkeypatch.setattr(looks._queue, "begun", slow)
    found: list[str] = []
    for _ in range(8):
        looks.look()
        found.append(store.get(attempt.job_id).status)
        looks.now += 10
    # The time between the looks counts: seven times ten seconds.
    assert found == ["running"] * 6 + ["queued"] * 2
