"""Files that ended jobs have left behind, on SQLite and on PostgreSQL."""

from pathlib import Path

import pytest
import sqlalchemy as sa

from sae_service.errors import NotFound, StorageFailure
from sae_service.jobs import tables
from sae_service.jobs.attempts import MAX_CRASHES, Attempt
from sae_service.jobs.collection import AT_ONCE, Collection
from sae_service.jobs.database import Database
from sae_service.jobs.lost_attempts import LostAttempts
from sae_service.jobs.records import Job
from sae_service.jobs.store import JobStore
from sae_service.storage.objects import Storage
from tests.attempts import SPEC, checkpoint, claimed, submitted
from tests.published import published

LEASE_S = 60
FILES = {"state/arrays.safetensors": b"weights"}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Collecting:
    """A collection whose time passes when it is told to."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.storage, self.clock = Storage(folder.as_uri()), Clock()
        self.collection = Collection(database, self.storage, LEASE_S, self.clock)

    def written(self, job_id: str, step: int, name: str = "") -> str:
        key = f"jobs/{job_id}/step-{step}{name}"
        self.storage.publish(key, FILES)
        return key

    def cut_off(self, job_id: str, step: int) -> str:
        """What a worker leaves that is killed in the middle of a publish."""
        key = f"jobs/{job_id}/step-{step}-half"
        self.storage.put(f"{key}/state/arrays.safetensors", b"wei")
        return key

    def committed(self, attempt: Attempt, step: int, is_final: bool = False) -> tuple[str, list[str]]:
        """A new checkpoint's key, and those that are given up for it."""
        key = self.written(attempt.job_id, step, "-final" if is_final else "")
        return key, attempt.commit(checkpoint(step, is_final) | {"key": key}, keep=1)

    def left(self, job_id: str) -> set[str]:
        return self.storage.folders(f"jobs/{job_id}")

    def passes(self, leases: int = 1) -> None:
        for _ in range(leases * 6):
            self.collection.look()
            self.clock.now += LEASE_S / 6
        self.collection.look()


@pytest.fixture
def collecting(database: Database, tmp_path: Path) -> Collecting:
    return Collecting(database, tmp_path / "storage")


def is_collected(database: Database, job_id: str) -> bool:
    with database.transaction() as connection:
        return connection.execute(sa.select(tables.jobs.c.collected).where(tables.jobs.c.id == job_id)).scalar_one()


def test_nothing_is_left_of_the_publish_in_the_middle_of_which_the_third_worker_died(
    database: Database, store: JobStore, collecting: Collecting
) -> None:
    attempt, lost_clock = claimed(database, store), Clock()
    lost_attempts = LostAttempts(database, LEASE_S, lost_clock)
    kept, _ = collecting.committed(attempt, 3)
    for number in range(1, MAX_CRASHES + 1):
        attempt = Attempt(database, attempt.job_id, number)
        attempt.claim("worker-1")
        collecting.cut_off(attempt.job_id, 3 + number)
        for _ in range(4):
            lost_attempts.look()
            lost_clock.now += LEASE_S / 3
    assert store.get(attempt.job_id).status == "failed"
    collecting.passes()
    assert collecting.left(attempt.job_id) == {kept}
    assert published(collecting.storage, kept) == FILES


def test_nothing_is_left_of_a_job_that_is_cancelled_before_another_worker_goes_on_with_it(
    database: Database, store: JobStore, collecting: Collecting
) -> None:
    attempt = claimed(database, store)
    collecting.cut_off(attempt.job_id, 3)
    attempt.release()
    assert store.cancel(attempt.job_id).status == "cancelled"
    collecting.passes()
    assert collecting.left(attempt.job_id) == set()


def test_what_was_still_to_be_deleted_when_the_worker_died_behind_the_last_commit_is_deleted(
    database: Database, store: JobStore, collecting: Collecting
) -> None:
    attempt = claimed(database, store)
    given_up, _ = collecting.committed(attempt, 3)
    kept, _ = collecting.committed(attempt, 6)
    final, _ = collecting.committed(attempt, 9, is_final=True)
    assert collecting.left(attempt.job_id) == {given_up, kept, final}
    collecting.passes()
    assert collecting.left(attempt.job_id) == {kept, final}


def test_files_with_which_a_fork_has_yet_to_begin_are_deleted_once_it_has_ended(
    database: Database, store: JobStore, collecting: Collecting
) -> None:
    attempt = claimed(database, store)
    trained, _ = collecting.committed(attempt, 9)
    fork, _ = store.submit(SPEC, origin=store.checkpoint(attempt.job_id, "latest"))
    final, _ = collecting.committed(attempt, 9, is_final=True)
    collecting.passes(leases=3)
    assert collecting.left(attempt.job_id) == {trained, final}
    assert not is_collected(database, attempt.job_id)
    store.cancel(fork.id)
    collecting.passes()
    assert collecting.left(attempt.job_id) == {final}


@pytest.mark.parametrize("status", ["queued", "running", "paused", "cancelling"])
def test_a_job_that_has_not_ended_is_let_alone(
    database: Database, store: JobStore, collecting: Collecting, status: str
) -> None:
    attempt = claimed(database, store)
    if status in ("queued", "paused"):
        attempt.release()
    if status in ("paused", "cancelling"):
        (store.pause if status == "paused" else store.cancel)(attempt.job_id)
    assert store.get(attempt.job_id).status == status
    half = collecting.cut_off(attempt.job_id, 3)
    collecting.passes(leases=3)
    assert collecting.left(attempt.job_id) == {half}
    assert not is_collected(database, attempt.job_id)


def ended(store: JobStore) -> Job:
    return store.cancel(submitted(store).id)


def test_whoever_may_still_write_has_a_lease_to_stop_and_what_it_wrote_later_is_deleted_too(
    store: JobStore, collecting: Collecting
) -> None:
    job = ended(store)
    first = collecting.cut_off(job.id, 3)
    for collecting.clock.now in range(0, LEASE_S, 7):
        collecting.collection.look()
    assert collecting.left(job.id) == {first}
    collecting.clock.now = LEASE_S
    collecting.collection.look()
    assert collecting.left(job.id) == set()
    collecting.cut_off(job.id, 6)
    collecting.passes()
    assert collecting.left(job.id) == set()


def test_a_job_whose_folder_was_found_in_order_is_not_looked_at_again(
    database: Database, store: JobStore, collecting: Collecting, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = claimed(database, store)
    final, _ = collecting.committed(attempt, 9, is_final=True)
    collecting.passes()
    assert is_collected(database, attempt.job_id)
    monkeypatch.setattr(collecting.storage, "folders", lambda prefix: pytest.fail(prefix))
    collecting.passes(leases=2)
    assert published(collecting.storage, final) == FILES


def test_a_storage_that_fails_is_asked_again_and_keeps_no_other_job_waiting_for_long(
    store: JobStore, collecting: Collecting, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, sound = ended(store), ended(store)
    for job in (broken, sound):
        collecting.cut_off(job.id, 3)
    collecting.collection.look()
    collecting.clock.now = LEASE_S
    listed = collecting.storage.folders

    def folders(prefix: str) -> set[str]:
        if prefix.endswith(broken.id):
            raise StorageFailure(f"cannot list {prefix}")
        return listed(prefix)

    with monkeypatch.context() as patch:
        patch.setattr(collecting.storage, "folders", folders)
        with pytest.raises(StorageFailure):
            collecting.collection.look()
        collecting.collection.look()
    assert (len(collecting.left(broken.id)), collecting.left(sound.id)) == (1, set())
    collecting.passes()
    assert collecting.left(broken.id) == set()


def test_a_delete_while_a_job_is_collected_is_harmless(
    store: JobStore, collecting: Collecting, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, listed = ended(store), collecting.storage.folders
    collecting.cut_off(job.id, 3)

    def folders(prefix: str) -> set[str]:
        found = listed(prefix)
        if prefix.endswith(job.id):
            store.delete(job.id, lambda: collecting.storage.delete(f"jobs/{job.id}"))
        return found

    monkeypatch.setattr(collecting.storage, "folders", folders)
    collecting.passes(leases=2)
    with pytest.raises(NotFound):
        store.get(job.id)
    assert listed(f"jobs/{job.id}") == set()


def test_a_job_that_is_collected_while_it_is_deleted_is_deleted(
    database: Database, store: JobStore, collecting: Collecting
) -> None:
    attempt = claimed(database, store)
    collecting.committed(attempt, 9, is_final=True)

    def delete_files() -> None:
        collecting.passes(leases=2)
        collecting.storage.delete(f"jobs/{attempt.job_id}")

    store.delete(attempt.job_id, delete_files)
    with pytest.raises(NotFound):
        store.get(attempt.job_id)
    assert collecting.left(attempt.job_id) == set()


def test_a_job_that_runs_again_because_its_database_has_lost_the_end_is_let_alone(
    database: Database, store: JobStore, collecting: Collecting, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, listed = ended(store), collecting.storage.folders
    half = collecting.cut_off(job.id, 3)

    def folders(prefix: str) -> set[str]:
        # Stands for a copy that takes the server's place without its last transactions.
        with database.transaction() as connection:
            connection.execute(sa.update(tables.jobs).where(tables.jobs.c.id == job.id).values(status="running"))
        return listed(prefix)

    monkeypatch.setattr(collecting.storage, "folders", folders)
    collecting.passes()
    assert listed(f"jobs/{job.id}") == {half}


def test_jobs_that_were_collected_cost_nothing_however_many_they_are(database: Database, store: JobStore) -> None:
    row = dict.fromkeys(("priority", "attempt", "n_events", "created_at"), 0) | {"queue": "default", "spec": {}, "metadata": {}}
    rows = [row | {"id": f"job_old{n}", "status": "succeeded", "finished_at": 0, "collected": True} for n in range(3000)]
    rows += [row | {"id": f"job_old_queued{n}", "status": "queued", "finished_at": None, "collected": False} for n in range(3000)]
    job = ended(store)
    query = sa.select(tables.jobs.c.id).where(tables.UNCOLLECTED).order_by(tables.jobs.c.id).limit(AT_ONCE)
    with database.transaction() as connection:
        connection.execute(sa.insert(tables.jobs), rows)
        assert job.id in connection.execute(query).scalars().all()
        if not database.is_sqlite:
            connection.execute(sa.text("ANALYZE jobs"))
        explain = "EXPLAIN QUERY PLAN" if database.is_sqlite else "EXPLAIN"
        sql = str(query.compile(database.engine, compile_kwargs={"literal_binds": True}))
        plan = str(connection.execute(sa.text(f"{explain} {sql}")).all())
        connection.execute(sa.delete(tables.jobs).where(tables.jobs.c.id.like("job_old%")))
    assert "ix_jobs_uncollected" in plan
    (index,) = (found for found in sa.inspect(database.engine).get_indexes("jobs") if found["name"] == "ix_jobs_uncollected")
    assert "collected" in str(index["dialect_options"][f"{database.engine.dialect.name}_where"]), "it has no others"


def test_a_look_at_many_thousand_jobs_that_nobody_has_looked_at_takes_a_few_of_them(
    database: Database, store: JobStore, collecting: Collecting, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = dict.fromkeys(("priority", "attempt", "n_events", "created_at", "finished_at"), 0) | {"queue": "default", "spec": {}}
    rows = [row | {"id": f"job_many{n:04}", "status": "succeeded", "metadata": {}} for n in range(5 * AT_ONCE // 2)]
    with database.transaction() as connection:
        connection.execute(sa.insert(tables.jobs), rows)
    listed, listing = collecting.storage.folders, list[str]()

    def folders(prefix: str) -> set[str]:
        listing.append(prefix)
        return listed(prefix)

    monkeypatch.setattr(collecting.storage, "folders", folders)
    longest = 0
    while not all(is_collected(database, row["id"]) for row in rows):
        before = len(listing)
        collecting.collection.look()
        longest = max(longest, len(listing) - before)
        collecting.clock.now += LEASE_S / 6
    assert longest <= AT_ONCE
    assert len({prefix for prefix in listing if "job_many" in prefix}) == len(rows)
    assert sum("job_many" in prefix for prefix in listing) == len(rows), "each once"
    with database.transaction() as connection:
        connection.execute(sa.delete(tables.jobs).where(tables.jobs.c.id.like("job_many%")))
