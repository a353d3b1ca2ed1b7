"""Who owns a job, and what is recorded, on SQLite and on PostgreSQL."""

import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from sae_service.errors import Conflict, InvalidSpec, LeaseLost, NotFound, StorageFailure
from sae_service.jobs import tables
from sae_service.jobs.attempts import MAX_CRASHES, Attempt
from sae_service.jobs.database import Database
from sae_service.jobs.migration import migrate
from sae_service.jobs.presence import Presence
from sae_service.jobs.store import JobStore
from tests.attempts import CRASH, SPEC, checkpoint, claimed, statuses, submitted


def test_migrating_twice_changes_nothing(database: Database, store: JobStore) -> None:
    job = submitted(store)
    migrate(database)
    assert store.get(job.id) == job


def test_an_old_sqlite_has_the_clock_that_dbos_dates_its_rows_by(tmp_path: Path) -> None:
    with Database(f"sqlite:///{tmp_path / 'service.db'}").transaction() as connection:
        now = connection.execute(sa.select(sa.func.unixepoch("subsec"))).scalar_one()
    assert now == pytest.approx(time.time(), abs=5)


def test_a_new_job_is_queued_and_says_so(store: JobStore) -> None:
    job = submitted(store)
    assert (job.status, job.attempt, job.metadata) == ("queued", 1, {"team": "a"})
    assert statuses(store, job.id) == ["queued"]


def test_a_worker_whose_claim_was_answered_into_a_dead_connection_is_answered_again(store: JobStore, database: Database) -> None:
    attempt = Attempt(database, submitted(store).id, 1)
    first = attempt.claim("worker-1")
    assert first is not None
    assert attempt.claim("worker-1") == first
    assert attempt.claim("worker-2") is None
    assert statuses(store, attempt.job_id) == ["queued", "running"]
    attempt.fail(CRASH)
    assert attempt.claim("worker-1") is None


def test_a_repeated_key_returns_the_first_job_and_another_request_is_refused(store: JobStore, tmp_path: Path) -> None:
    key = str(tmp_path)[-60:]
    first, is_new = store.submit(SPEC, key, "hash")
    again, is_new_again = store.submit(SPEC, key, "hash")
    assert (first.id, is_new, is_new_again) == (again.id, True, False)
    with pytest.raises(InvalidSpec, match="Idempotency-Key"):
        store.submit(SPEC, key, "other")


def test_only_one_worker_can_claim_an_attempt(database: Database, store: JobStore) -> None:
    job = submitted(store)
    assert Attempt(database, job.id, 1).claim("worker-1") == SPEC
    assert Attempt(database, job.id, 1).claim("worker-2") is None
    assert store.get(job.id).worker == "worker-1"


def test_a_queued_job_is_cancelled_at_once_and_never_starts(database: Database, store: JobStore) -> None:
    job = submitted(store)
    assert store.cancel(job.id).status == "cancelled"
    assert store.cancel(job.id).status == "cancelled"
    assert Attempt(database, job.id, 1).claim("worker-1") is None


def test_a_running_job_is_cancelled_once_its_worker_says_so(database: Database, store: JobStore) -> None:
    attempt = claimed(database, store)
    assert store.cancel(attempt.job_id).status == "cancelling"
    assert attempt.renew() == "cancelling"
    attempt.cancel()
    assert statuses(store, attempt.job_id) == ["queued", "running", "cancelling", "cancelled"]


def test_a_queued_job_is_paused_at_once_and_resumed(database: Database, store: JobStore) -> None:
    job = submitted(store)
    assert store.pause(job.id).status == "paused"
    assert store.pause(job.id).status == "paused"
    assert Attempt(database, job.id, 1).claim("worker-1") is None
    assert store.resume(job.id).status == "queued"
    assert Attempt(database, job.id, 2).claim("worker-1") == SPEC
    assert store.resume(job.id).status == "running"


def test_a_running_job_is_paused_once_its_worker_has_let_go(database: Database, store: JobStore) -> None:
    attempt = claimed(database, store)
    assert store.pause(attempt.job_id).status == "pausing"
    with pytest.raises(Conflict, match="is still pausing; resume it once it is paused"):
        store.resume(attempt.job_id)
    assert attempt.commit(checkpoint(3) | {"key": f"{attempt.job_id}/3"}, keep=1) == [], "its state is saved"
    attempt.release()
    assert store.get(attempt.job_id).status == "paused"
    assert store.cancel(attempt.job_id).status == "cancelled"
    with pytest.raises(Conflict, match="cancelled"):
        store.pause(attempt.job_id)


def test_a_checkpoint_of_an_attempt_that_went_further_back_takes_the_place_of_later_ones(
    database: Database, store: JobStore
) -> None:
    attempt = claimed(database, store)
    for step in (2, 4, 6):
        attempt.commit(checkpoint(step) | {"key": f"{attempt.job_id}/{step}"}, keep=9)
    replaced = attempt.commit(checkpoint(4) | {"key": f"{attempt.job_id}/again"}, keep=9)
    assert sorted(replaced) == [f"{attempt.job_id}/4", f"{attempt.job_id}/6"]
    assert [found.step for found in store.checkpoints(attempt.job_id)] == [4, 2]


def test_while_a_job_is_being_cancelled_no_checkpoint_is_committed(database: Database, store: JobStore) -> None:
    attempt = claimed(database, store)
    store.cancel(attempt.job_id)
    assert attempt.commit(checkpoint(5, is_final=True) | {"key": "k/late"}, keep=1) == ["k/late"]
    assert store.get(attempt.job_id).status == "cancelling"
    assert store.checkpoints(attempt.job_id) == []


def test_a_final_checkpoint_is_the_jobs_success(database: Database, store: JobStore) -> None:
    attempt = claimed(database, store)
    attempt.commit(checkpoint(9, is_final=True) | {"key": f"{attempt.job_id}/9"}, keep=1)
    assert store.get(attempt.job_id).status == "succeeded"
    with pytest.raises(LeaseLost):
        attempt.event("info", "too late")
    with pytest.raises(Conflict, match="succeeded"):
        store.cancel(attempt.job_id)


def test_old_checkpoints_are_given_up_and_named(database: Database, store: JobStore) -> None:
    attempt = claimed(database, store)
    given_up = [attempt.commit(checkpoint(n) | {"key": f"{attempt.job_id}/{n}"}, keep=2) for n in (1, 2, 3)]
    assert given_up == [[], [], [f"{attempt.job_id}/1"]]
    assert [found.step for found in store.checkpoints(attempt.job_id)] == [3, 2]
    assert store.get(attempt.job_id).latest_checkpoint == store.checkpoint(attempt.job_id, "latest").id


def test_files_with_which_another_job_has_yet_to_begin_outlive_their_checkpoint(database: Database, store: JobStore) -> None:
    attempt = claimed(database, store)
    key = f"{attempt.job_id}/9"
    attempt.commit(checkpoint(9) | {"key": key}, keep=1)
    heir, _ = store.submit(SPEC, origin=store.checkpoint(attempt.job_id, "latest"))
    assert attempt.commit(checkpoint(9, is_final=True) | {"key": f"{key}/final"}, keep=1) == []
    assert [found.key for found in store.checkpoints(attempt.job_id)] == [f"{key}/final"]
    written = {key, f"{key}/final", f"{key}/half"}
    assert attempt.orphans(written) == {f"{key}/half"}
    with pytest.raises(Conflict, match=heir.id):
        store.delete(attempt.job_id, lambda: None)
    store.cancel(heir.id)
    assert attempt.orphans(written) == {key, f"{key}/half"}
    store.delete(attempt.job_id, lambda: None)


def test_text_may_hold_any_character(database: Database, store: JobStore) -> None:
    attempt = claimed(database, store)
    attempt.record_crash(CRASH | {"message": "the log says \0\x1b"})
    assert "the log says" in store.events(attempt.job_id)[-1].message


def test_events_count_from_one_without_a_gap(database: Database, store: JobStore) -> None:
    attempt = claimed(database, store)
    for number in range(5):
        attempt.event("info", f"news {number}")
    ids = [event.id for event in store.events(attempt.job_id)]
    assert ids == list(range(1, len(ids) + 1))
    assert [event.id for event in store.events(attempt.job_id, after=3, limit=2)] == [4, 5]


def test_metrics_of_an_earlier_attempt_are_replaced_not_repeated(database: Database, store: JobStore) -> None:
    attempt = claimed(database, store)
    for step in (5, 10, 15):
        attempt.metrics([{"sae": "a", "step": step, "loss": 1.0}], {"step": step})
    attempt.metrics([{"sae": "a", "step": 10, "loss": 2.0}], {"step": 10})
    assert [(row.step, row.data["loss"]) for row in store.metrics(attempt.job_id)] == [(5, 1.0), (10, 2.0)]


def test_metrics_of_one_sae_are_replaced_without_those_of_another(database: Database, store: JobStore) -> None:
    attempt = claimed(database, store)
    for step, saes in ((5, "ab"), (10, "ab"), (5, "a")):
        attempt.metrics([{"sae": sae, "step": step} for sae in saes], {"step": step})
    assert [(row.step, row.sae) for row in store.metrics(attempt.job_id)] == [(5, "a"), (5, "b"), (10, "b")]


def test_metrics_of_many_saes_take_as_many_statements_as_those_of_one(database: Database, store: JobStore) -> None:
    attempt = claimed(database, store)
    taken: list[int] = []
    for n in (1, 64):
        statements: list[str] = []

        def count(_: object, __: object, statement: str, *___: object, into: list[str] = statements) -> None:
            into.append(statement)

        sa.event.listen(database.engine, "before_cursor_execute", count)
        attempt.metrics([{"sae": f"sae{number}", "step": 5} for number in range(n)], {"step": 5})
        sa.event.remove(database.engine, "before_cursor_execute", count)
        taken.append(len(statements))
    assert len(store.metrics(attempt.job_id)) == 64
    assert taken[0] == taken[1]


def test_a_released_job_waits_for_the_next_attempt_and_is_no_crash(database: Database, store: JobStore) -> None:
    attempt = claimed(database, store)
    for number in range(2, 2 + MAX_CRASHES + 1):
        attempt.release()
        job = store.get(attempt.job_id)
        assert (job.status, job.status_reason, job.attempt) == ("queued", "preempted", number)
        attempt = Attempt(database, job.id, number)
        assert attempt.claim("worker-2") is not None


def test_the_third_crash_is_the_last(database: Database, store: JobStore) -> None:
    attempt = claimed(database, store)
    for number in (2, 3):
        attempt.record_crash(CRASH)
        assert store.get(attempt.job_id).status_reason == "retry_after_crash"
        attempt = Attempt(database, attempt.job_id, number)
        attempt.claim("worker-1")
    attempt.record_crash(CRASH)
    job = store.get(attempt.job_id)
    assert job.status == "failed"
    assert job.error is not None
    assert job.error.code == "worker_crashed"


def test_crashes_before_a_new_checkpoint_are_forgotten_but_not_before_one_that_is_made_again(
    database: Database, store: JobStore
) -> None:
    attempt = claimed(database, store)
    for number in range(2, 2 + 2 * MAX_CRASHES):
        attempt.commit(checkpoint(number) | {"key": f"k/{number}"}, keep=9)
        attempt.record_crash(CRASH)
        attempt = Attempt(database, attempt.job_id, number)
        assert attempt.claim("worker-1") is not None
    for number in range(2 + 2 * MAX_CRASHES, 1 + 3 * MAX_CRASHES):
        attempt.commit(checkpoint(3) | {"key": f"k/{number}/again"}, keep=9)
        attempt.record_crash(CRASH)
        attempt = Attempt(database, attempt.job_id, number)
        attempt.claim("worker-1")
    assert store.get(attempt.job_id).status == "failed"


def test_nobody_waits_while_the_files_of_a_job_are_deleted_nor_begins_with_them(database: Database, store: JobStore) -> None:
    attempt = claimed(database, store)
    attempt.commit(checkpoint(3) | {"key": f"{attempt.job_id}/3", "is_final": True}, keep=2)
    (made,) = store.checkpoints(attempt.job_id)
    meanwhile: list[str] = []

    def delete_files() -> None:
        meanwhile.append(submitted(store).id)
        with pytest.raises(NotFound):
            store.submit(SPEC, origin=made)

    store.delete(attempt.job_id, delete_files)
    assert store.get(meanwhile[0]).status == "queued"
    with pytest.raises(NotFound):
        store.get(attempt.job_id)


def test_workers_of_two_hosts_share_postgresql_but_no_sqlite_file(database: Database) -> None:
    here, there = (Presence(database, f"{host}:1:x", "hosts", 1, lease_s=60) for host in ("here", "there"))
    with database.transaction() as connection:
        connection.execute(sa.delete(tables.workers))
    here.renew()
    if database.is_sqlite:
        with pytest.raises(StorageFailure, match="workers on here use it too"):
            there.renew()
        here.leave()
    there.renew()
    there.leave()
    here.leave()


def test_jobs_are_listed_by_age_status_and_label(store: JobStore) -> None:
    made = [submitted(store, metadata={"team": "list", "n": str(n)}).id for n in range(3)]
    assert [job.id for job in store.find(10, metadata={"team": "list"})] == made[::-1]
    assert [job.id for job in store.find(10, after=made[2], metadata={"team": "list"})] == [made[1], made[0]]
    assert [job.id for job in store.find(10, newest_first=False, metadata={"n": "1"})] == [made[1]]
    assert store.find(10, status="succeeded", metadata={"team": "list"}) == []
    with pytest.raises(NotFound):
        store.find(10, after="job_unknown")
