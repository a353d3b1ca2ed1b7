"""What goes when a job is no longer kept: its rows, its files and its logs, on SQLite and on PostgreSQL."""

from pathlib import Path

import pytest
import sqlalchemy as sa

from sae_service.errors import NotFound, StorageFailure
from sae_service.jobs import retention as retention_module
from sae_service.jobs import tables
from sae_service.jobs.attempts import Attempt
from sae_service.jobs.database import Database
from sae_service.jobs.retention import Retention
from sae_service.jobs.rows import DAY_S
from sae_service.jobs.store import JobStore
from sae_service.storage.objects import Storage
from tests.attempts import SPEC, checkpoint, claimed, submitted
from workers.old_logs import OldLogs


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage((tmp_path / "storage").as_uri())


def finished(database: Database, store: JobStore, storage: Storage) -> Attempt:
    attempt = claimed(database, store)
    key = f"jobs/{attempt.job_id}/step-9"
    storage.publish(key, {"saes/a/weights": b"weights"})
    pace = dict.fromkeys(("step", "total_steps", "tokens", "total_tokens", "tokens_per_s"), 9)
    attempt.metrics([{"sae": "a", "step": 9}], pace | {"metrics": {}})
    attempt.commit(checkpoint(9, is_final=True) | {"key": key}, keep=1)
    return attempt


def ended_before(database: Database, job_id: str, days: float) -> None:
    earlier = tables.jobs.c.finished_at - round(days * DAY_S)
    with database.transaction() as connection:
        connection.execute(sa.update(tables.jobs).where(tables.jobs.c.id == job_id).values(finished_at=earlier))


def rows_of(database: Database, job_id: str) -> int:
    children = (tables.events, tables.metrics, tables.checkpoints, tables.labels)
    with database.transaction() as connection:
        counts = [sa.select(sa.func.count()).select_from(table).where(table.c.job_id == job_id) for table in children]
        return sum(connection.execute(count).scalar_one() for count in counts)


def test_jobs_are_kept_for_ever_unless_the_settings_say_otherwise(database: Database, store: JobStore, storage: Storage) -> None:
    job_id = finished(database, store, storage).job_id
    ended_before(database, job_id, days=9999)
    Retention(database, storage, None).look()
    assert store.get(job_id).status == "succeeded"
    Retention(database, storage, 1).look()


def test_a_job_that_ended_longer_ago_goes_with_all_that_is_known_of_it_and_a_later_one_stays(
    database: Database, store: JobStore, storage: Storage
) -> None:
    old_id, young_id = (finished(database, store, storage).job_id for _ in range(2))
    waiting = submitted(store).id
    ended_before(database, old_id, days=30)
    ended_before(database, young_id, days=28)
    assert rows_of(database, old_id) > 0
    Retention(database, storage, 29).look()
    with pytest.raises(NotFound):
        store.get(old_id)
    assert (rows_of(database, old_id), storage.folders(f"jobs/{old_id}")) == (0, set())
    assert store.get(young_id).status == "succeeded"
    assert store.get(waiting).status == "queued"


def test_a_job_stays_as_long_as_another_one_goes_on_from_it(database: Database, store: JobStore, storage: Storage) -> None:
    job_id = finished(database, store, storage).job_id
    heir, _ = store.submit(SPEC, origin=store.checkpoint(job_id, "latest"))
    ended_before(database, job_id, days=30)
    retention = Retention(database, storage, 29)
    retention.look()
    assert len(storage.folders(f"jobs/{job_id}")) == 1
    store.cancel(heir.id)
    retention.look()
    with pytest.raises(NotFound):
        store.get(job_id)


def test_a_job_whose_files_cannot_be_deleted_keeps_no_other_one(
    database: Database, store: JobStore, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, sound = (finished(database, store, storage).job_id for _ in range(2))
    for job_id, days in ((broken, 31), (sound, 30)):
        ended_before(database, job_id, days)
    delete = storage.delete

    def fails(key: str) -> None:
        if key.endswith(broken):
            raise StorageFailure(f"cannot delete {key}")
        delete(key)

    retention = Retention(database, storage, 29)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete", fails)
        patch.setattr(retention_module, "AT_ONCE", 1)
        retention.look()
        retention.look()
    assert store.get(broken).status == "succeeded"
    with pytest.raises(NotFound):
        store.get(sound)
    retention.look()
    with pytest.raises(NotFound):
        store.get(broken)


def test_the_logs_of_a_job_go_once_it_is_deleted(database: Database, store: JobStore, storage: Storage, tmp_path: Path) -> None:
    kept, gone = (finished(database, store, storage).job_id for _ in range(2))
    for job_id in (kept, gone):
        for attempt in (1, 2):
            (tmp_path / f"{job_id}.{attempt}.log").write_text("words")
    store.delete(gone, lambda: None)
    OldLogs(tmp_path, store).look()
    assert {path.name for path in tmp_path.glob("*.log")} == {f"{kept}.1.log", f"{kept}.2.log"}


def test_many_metrics_are_deleted_a_part_at_a_time(
    database: Database, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae_service.jobs.store.DELETED_AT_ONCE", 10)
    attempt = claimed(database, store)
    for step in range(1, 36):
        attempt.metrics([{"sae": name, "step": step} for name in "ab"], {"step": step})
    attempt.fail({"code": "internal", "message": "It fell over.", "param": None})
    counts: list[int] = []

    def count(_: object, cursor: object, statement: str, *__: object) -> None:
        if statement.startswith("DELETE FROM metrics"):
            counts.append(getattr(cursor, "rowcount", 0))

    sa.event.listen(database.engine, "after_cursor_execute", count)
    store.delete(attempt.job_id, lambda: None)
    sa.event.remove(database.engine, "after_cursor_execute", count)
    assert max(counts) <= 12
    assert rows_of(database, attempt.job_id) == 0
