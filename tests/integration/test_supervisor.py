"""The worker's side of an attempt, with small programs in place of the training process."""

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from prometheus_client import REGISTRY
from sqlalchemy.exc import OperationalError

from sae_service.errors import ServiceUnavailable
from sae_service.jobs.attempts import Attempt
from tests.integration.supervised import READ_ASSIGNMENT, SPEC, Worker, eventually, saved, says
from workers import child as child_module
from workers.job_process import failure


def test_a_job_that_is_cancelled_as_its_final_checkpoint_comes_is_cancelled_at_once(
    worker: Worker, child_runs: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = worker.supervisor._record

    def cancelled_meanwhile(*arguments: Any) -> None:
        worker.store.cancel(worker.job_id)
        record(*arguments)

    monkeypatch.setattr(worker.supervisor, "_record", cancelled_meanwhile)
    final = worker.publish(9, is_final=True)
    monkeypatch.setattr(worker.supervisor._storage, "folders", lambda prefix: set())
    child_runs(says(saved(final), {"kind": "finished"}))
    worker.supervisor.work(worker.job_id, 1)
    assert worker.status == "cancelled"


def test_a_process_is_said_to_hang_only_if_it_shows_no_life(
    worker: Worker, child_runs: Callable[[str], None]
) -> None:
    worker.supervisor._settings = worker.settings.model_copy(update={"hang_s": 2.0})
    alive = json.dumps({"kind": "alive"})
    child_runs(READ_ASSIGNMENT + f"for _ in range(20): print({alive!r}, flush=True); time.sleep(0.2)\ntime.sleep(60)")
    began = time.monotonic()
    worker.supervisor.work(worker.job_id, 1)
    assert time.monotonic() - began >= 19 * 0.2 + 2, "the last sign came after 19 pauses"
    assert any("has said nothing for 2 s" in event.message for event in worker.store.events(worker.job_id))


def test_a_process_that_does_not_listen_does_not_hold_up_its_worker(
    worker: Worker, child_runs: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[child_module.Child] = []
    original = child_module.Child.__init__

    def full(self: child_module.Child, *arguments: Any) -> None:
        original(self, *arguments)
        started.append(self)
        # Stands for the renewals of an hour: as much as the pipe can hold.
        writer = threading.Thread(target=lambda: [self.say({"kind": "renewed"}) for _ in range(10_000)], daemon=True)
        writer.start()
        writer.join(2)

    monkeypatch.setattr(child_module.Child, "__init__", full)
    child_runs(READ_ASSIGNMENT + "time.sleep(60)")
    working = threading.Thread(target=worker.supervisor.work, args=(worker.job_id, 1), daemon=True)
    working.start()
    try:
        eventually(lambda: bool(started) and worker.status == "running")
        worker.store.cancel(worker.job_id)
        working.join(20)
        assert not working.is_alive()
        assert worker.status == "cancelled"
    finally:
        started[0].kill()


def test_an_outage_that_outlasts_the_lease_is_a_preemption_and_no_crash(
    worker: Worker, child_runs: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    record, begin = worker.supervisor._record, worker.database.engine.begin

    def in_an_outage(*arguments: Any) -> None:
        over = time.monotonic() + 2.5

        def away() -> Any:
            if time.monotonic() < over:
                raise OperationalError("UPDATE", {}, Exception("the server is gone"))
            return begin()

        monkeypatch.setattr(worker.database.engine, "begin", away)
        record(*arguments)

    monkeypatch.setattr(worker.supervisor, "_record", in_an_outage)
    child_runs(says({"kind": "event", "level": "info", "message": "news"}) + "\ntime.sleep(60)")
    worker.supervisor.work(worker.job_id, 1)
    monkeypatch.setattr(worker.database.engine, "begin", begin)
    job = worker.store.get(worker.job_id)
    assert (job.status, job.status_reason) == ("queued", "preempted")


def test_what_is_recorded_is_a_sign_of_life_where_the_renewals_do_not_get_their_turn(
    worker: Worker, child_runs: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_vain(*_: Any) -> str:
        raise ServiceUnavailable("database is locked")

    monkeypatch.setattr(worker.supervisor, "_collect", lambda *_, **__: [])
    monkeypatch.setattr(Attempt, "renew", in_vain)
    # Three times as long as a worker may be without a renewal; the process says what it hears.
    news = "print(json.dumps({'kind': 'event', 'level': 'info', 'message': sys.stdin.buffer.raw.readline().decode()}), flush=True)"
    first = says({"kind": "event", "level": "info", "message": "begun"})
    final = saved(worker.publish(9, is_final=True))
    last = "\n".join(f"print({json.dumps(message)!r}, flush=True)" for message in (final, {"kind": "finished"}))
    child_runs(f"{first}\nfor _ in range(15): time.sleep(0.2); {news}\n{last}")
    worker.supervisor.work(worker.job_id, 1)
    assert (worker.status, worker.store.get(worker.job_id).attempt) == ("succeeded", 1)
    assert sum("renewed" in event.message for event in worker.store.events(worker.job_id)) == 15


def test_what_a_checkpoint_took_to_be_written_is_counted(worker: Worker, child_runs: Callable[[str], None]) -> None:
    def seconds() -> float:
        return REGISTRY.get_sample_value("sae_checkpoint_seconds_sum") or 0.0

    before = seconds()
    child_runs(says(saved(worker.publish(3)), saved(worker.publish(9, is_final=True)), {"kind": "finished"}))
    # They were published before their job was taken.
    worker.supervisor._storage.folders = lambda prefix: set()
    worker.supervisor.work(worker.job_id, 1)
    assert (worker.status, seconds() - before) == ("succeeded", pytest.approx(2 * 0.5))


def test_a_process_that_has_heard_nothing_for_half_a_lease_is_no_crash(
    worker: Worker, child_runs: Callable[[str], None]
) -> None:
    child_runs(READ_ASSIGNMENT + f"sys.exit({child_module.ORPHANED})")
    worker.supervisor.work(worker.job_id, 1)
    job = worker.store.get(worker.job_id)
    assert (job.status, job.status_reason) == ("queued", "preempted")


def test_a_process_does_not_get_the_signals_that_stop_its_worker_not_even_in_its_first_moment(
    worker: Worker, child_runs: Callable[[str], None]
) -> None:
    signalled = "import os, signal\nfor name in ('SIGTERM', 'SIGINT', 'SIGHUP'): os.kill(os.getpid(), getattr(signal, name))\n"
    final = worker.publish(9, is_final=True)
    child_runs(signalled + says(saved(final), {"kind": "finished"}))
    worker.supervisor.work(worker.job_id, 1)
    assert (worker.status, worker.store.get(worker.job_id).attempt) == ("succeeded", 1)


def test_a_process_that_does_not_save_in_time_is_ended_and_its_job_given_back(
    worker: Worker, child_runs: Callable[[str], None]
) -> None:
    worker.supervisor._settings = worker.settings.model_copy(update={"stop_s": 2})
    child_runs(READ_ASSIGNMENT + "time.sleep(60)")
    working = threading.Thread(target=worker.supervisor.work, args=(worker.job_id, 1))
    working.start()
    eventually(lambda: worker.status == "running")
    worker.supervisor.stopping.set()
    eventually(lambda: worker.store.get(worker.job_id).status_reason == "worker_stopping")
    working.join()
    job = worker.store.get(worker.job_id)
    assert (job.status, job.status_reason) == ("queued", "preempted")


def test_a_crash_is_counted_even_if_the_log_of_the_process_is_gone(
    worker: Worker, child_runs: Callable[[str], None]
) -> None:
    log = worker.settings.data_dir / "logs" / f"{worker.job_id}.1.log"
    child_runs(READ_ASSIGNMENT + f"import os; os.unlink({str(log)!r}); sys.exit(3)")
    worker.supervisor.work(worker.job_id, 1)
    assert worker.store.get(worker.job_id).status_reason == "retry_after_crash"
    assert "ended with status 3" in worker.store.events(worker.job_id)[-1].message


def test_a_host_that_cannot_start_a_process_says_so_and_the_job_is_tried_again(worker: Worker) -> None:
    logs = worker.settings.data_dir / "logs"
    logs.write_text("in the way of the folder")
    worker.supervisor.work(worker.job_id, 1)
    job = worker.store.get(worker.job_id)
    assert (job.status, job.status_reason) == ("queued", "retry_after_crash")
    said = worker.store.events(worker.job_id)[-1].message
    assert said.startswith("The training process cannot be started: ")
    assert str(logs) in said
    assert said.endswith("(crash 1 of 3).")


def test_an_error_that_nobody_foresaw_in_the_worker_itself_is_recorded_at_once_as_what_it_is(
    worker: Worker, child_runs: Callable[[str], None]
) -> None:
    worker.job_id = worker.store.submit(SPEC | {"checkpoints": {"keep": 10**25}})[0].id
    child_runs(says(saved(worker.publish(3))))
    for attempt in (1, 2, 3):
        worker.supervisor.work(worker.job_id, attempt)
    job = worker.store.get(worker.job_id)
    assert job.error is not None
    assert (job.status, job.error.code, "OverflowError" in job.error.message) == ("failed", "internal", True)
    said = [event.message for event in worker.store.events(worker.job_id) if "OverflowError" in event.message]
    assert [f"(crash {crash} of 3)" in message for crash, message in enumerate(said, 1)] == [True] * 3


def test_a_worker_does_not_ask_a_database_for_ever_that_refuses_what_it_asks(
    worker: Worker, child_runs: Callable[[str], None]
) -> None:
    event = {"kind": "event", "level": "info", "message": "news"}
    child_runs(says(event) + "\ntime.sleep(60)")
    with worker.database.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE events RENAME TO away"))
        # The claim says in an event that it has begun, so that one goes through.
        connection.execute(sa.text("UPDATE jobs SET status = 'running', worker = 'w1'"))
    working = threading.Thread(target=worker.supervisor.work, args=(worker.job_id, 1), daemon=True)
    working.start()
    working.join(20)
    assert not working.is_alive()


def test_an_error_that_nobody_has_foreseen_is_tried_again_and_ends_the_job_the_third_time(
    worker: Worker, child_runs: Callable[[str], None]
) -> None:
    child_runs(says(failure(RuntimeError("once in a blue moon"), has_trained=False)))
    for attempt in (1, 2, 3):
        assert worker.status == "queued"
        worker.supervisor.work(worker.job_id, attempt)
    job = worker.store.get(worker.job_id)
    assert job.error is not None
    assert (job.status, job.error.code) == ("failed", "internal")
    assert "once in a blue moon" in job.error.message
