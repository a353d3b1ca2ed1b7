"""The logs of a job's attempts, from the worker that stores them to whoever reads them over REST."""

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from sae_service.errors import StorageFailure
from sae_service.jobs.collection import Collection
from sae_service.storage import attempt_logs
from sae_service.storage.job_folders import log_folder
from tests.integration.supervised import READ_ASSIGNMENT, Worker, eventually, says
from workers import supervisor

FAILED = {"kind": "failed", "error": {"code": "invalid_spec", "message": "no", "param": None}, "retryable": False}
SAYS_WHICH_ATTEMPT = """
assignment = json.loads(sys.stdin.buffer.raw.readline())
print("attempt", assignment["attempt"], "of", assignment["job"], file=sys.stderr)
sys.exit(3)
"""


def logs(text: str, *messages: dict[str, Any], times: int = 1) -> str:
    """A program that writes a text to its log so many times, then says what it has to say to its worker."""
    said = "\n".join(f"print({json.dumps(message)!r}, flush=True)" for message in messages)
    return f"{READ_ASSIGNMENT}sys.stderr.write({text!r} * {times})\n{said}"


def stored(worker: Worker) -> list[str]:
    return worker.storage.keys(log_folder(worker.job_id))


def test_before_there_is_a_log_the_answer_says_so(worker: Worker, api: TestClient) -> None:
    answer = api.get(f"/v1/jobs/{worker.job_id}/logs")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert answer.json()["detail"].startswith(f"job {worker.job_id} has no log yet.")
    assert "there is no job job_1" in api.get("/v1/jobs/job_1/logs").json()["detail"]


def test_each_attempt_has_a_log_of_its_own_and_the_last_one_is_shown(
    worker: Worker, api: TestClient, child_runs: Callable[[str], None]
) -> None:
    child_runs(f"import json, sys{SAYS_WHICH_ATTEMPT}")
    for number in (1, 2):
        worker.supervisor.work(worker.job_id, number)
    assert worker.status == "queued"
    path = f"/v1/jobs/{worker.job_id}/logs"
    last, first, none = api.get(path), api.get(path, params={"attempt": 1}), api.get(path, params={"attempt": 3})
    assert (last.text, last.headers["X-Attempt"]) == (f"attempt 2 of {worker.job_id}\n", "2")
    assert (first.text, first.headers["X-Attempt"]) == (f"attempt 1 of {worker.job_id}\n", "1")
    assert last.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert (none.status_code, none.json()["param"]) == (404, "attempt")
    assert none.json()["detail"] == f"attempt 3 of job {worker.job_id} has no log; the last one that has is 2"


def test_as_many_lines_are_shown_as_are_asked_for(worker: Worker, api: TestClient) -> None:
    attempt_logs.store(worker.storage, worker.job_id, 1, b"one\ntwo\nthree\n")
    path = f"/v1/jobs/{worker.job_id}/logs"
    assert api.get(path, params={"lines": 2}).text == "two\nthree\n"
    assert api.get(path, params={"lines": 10_000}).text == "one\ntwo\nthree\n"
    for wrong in ({"lines": 0}, {"lines": 10_001}, {"attempt": 0}, {"attempt": "last"}, {"line": 2}):
        assert api.get(path, params=wrong).status_code == 400


def test_the_log_of_an_attempt_is_64_kib_at_most_wherever_it_is(
    worker: Worker, api: TestClient, child_runs: Callable[[str], None]
) -> None:
    child_runs(logs("a line of a long log\n", FAILED, times=100_000))
    worker.supervisor.work(worker.job_id, 1)
    (key,) = stored(worker)
    text = api.get(f"/v1/jobs/{worker.job_id}/logs").text
    assert worker.storage.size(key) == len(text) <= 64 << 10
    assert set(text.splitlines()) == {"a line of a long log"}


def test_a_log_does_nothing_to_the_terminal_that_shows_it(worker: Worker, api: TestClient) -> None:
    attempt_logs.store(worker.storage, worker.job_id, 1, b"\x1b]0;title\x07red \x1b[31m\xff\x00\r\n1%\r2%\ttabs\n")
    text = api.get(f"/v1/jobs/{worker.job_id}/logs").text
    assert text == "]0;titlered [31m\N{REPLACEMENT CHARACTER}\n1%\n2%\ttabs\n"


def test_a_storage_that_takes_no_log_harms_no_job(
    worker: Worker, child_runs: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(*_: Any) -> None:
        raise StorageFailure("cannot write: the disk is full")

    monkeypatch.setattr(worker.supervisor._storage, "replace", refuses)
    final = {"kind": "checkpoint", "seconds": 0.1, "checkpoint": worker.publish(9, is_final=True)}
    child_runs(logs("a word\n", final, {"kind": "finished"}))
    worker.supervisor.work(worker.job_id, 1)
    assert worker.status == "succeeded"
    assert "the log of the attempt cannot be stored: cannot write: the disk is full" in caplog.text


def test_who_reads_that_a_job_has_succeeded_finds_its_log(
    worker: Worker, api: TestClient, child_runs: Callable[[str], None]
) -> None:
    final = {"kind": "checkpoint", "seconds": 0.1, "checkpoint": worker.publish(9, is_final=True)}
    child_runs(logs("first\n" * 3, final) + "\ntime.sleep(2)\n" + "print(json.dumps({'kind': 'finished'}), flush=True)")
    working = threading.Thread(target=worker.supervisor.work, args=(worker.job_id, 1))
    working.start()
    eventually(lambda: worker.status == "succeeded")
    assert api.get(f"/v1/jobs/{worker.job_id}/logs").text == "first\n" * 3
    working.join()


def test_the_log_of_a_cancelled_job_can_be_read(
    worker: Worker, api: TestClient, child_runs: Callable[[str], None]
) -> None:
    child_runs(logs("I train\n") + "\ntime.sleep(60)")
    working = threading.Thread(target=worker.supervisor.work, args=(worker.job_id, 1))
    working.start()
    eventually(lambda: worker.status == "running" and api.get(f"/v1/jobs/{worker.job_id}/logs").text == "I train\n")
    worker.store.cancel(worker.job_id)
    working.join()
    assert worker.status == "cancelled"
    assert api.get(f"/v1/jobs/{worker.job_id}/logs").text == "I train\n"


def test_the_log_of_an_attempt_that_has_lost_its_job_is_stored(
    worker: Worker, child_runs: Callable[[str], None]
) -> None:
    child_runs(logs("I train\n") + "\ntime.sleep(1); sys.stderr.write('I go on\\n')\ntime.sleep(60)")
    working = threading.Thread(target=worker.supervisor.work, args=(worker.job_id, 1))
    working.start()
    local = worker.settings.data_dir / "logs" / f"{worker.job_id}.1.log"
    eventually(lambda: bool(stored(worker)) and "I go on" in local.read_text())
    with worker.database.transaction() as connection:
        connection.exec_driver_sql("UPDATE jobs SET attempt = 2, status = 'queued'")
    working.join()
    assert worker.storage.get(f"{log_folder(worker.job_id)}/1.log") == b"I train\nI go on\n"


def test_a_collection_leaves_the_logs_of_an_ended_job(worker: Worker, child_runs: Callable[[str], None]) -> None:
    now = [0.0]
    collection = Collection(worker.database, worker.storage, 60, lambda: now[0])
    child_runs(logs("why\n", FAILED))
    worker.supervisor.work(worker.job_id, 1)
    worker.storage.put(f"jobs/{worker.job_id}/step-3/saes/a/cfg.json", b"cut off")
    for now[0] in range(0, 300, 10):
        collection.look()
    assert worker.storage.folders(f"jobs/{worker.job_id}") == {log_folder(worker.job_id)}


def test_the_log_goes_with_its_job(worker: Worker, api: TestClient, child_runs: Callable[[str], None]) -> None:
    child_runs(logs("why\n", FAILED))
    worker.supervisor.work(worker.job_id, 1)
    assert len(stored(worker)) == 1
    assert api.delete(f"/v1/jobs/{worker.job_id}").status_code == 204
    assert stored(worker) == []
    assert api.get(f"/v1/jobs/{worker.job_id}/logs").status_code == 404


def test_nothing_is_left_of_a_log_that_was_stored_once_more_after_its_job_was_deleted(
    worker: Worker, api: TestClient, child_runs: Callable[[str], None]
) -> None:
    final = {"kind": "checkpoint", "seconds": 0.1, "checkpoint": worker.publish(9, is_final=True)}
    more = "sys.stderr.write('more')\n" + f"print({json.dumps({'kind': 'finished'})!r}, flush=True)"
    child_runs(logs("a word\n", final) + f"\ntime.sleep(2)\n{more}")
    working = threading.Thread(target=worker.supervisor.work, args=(worker.job_id, 1))
    working.start()
    eventually(lambda: worker.status == "succeeded")
    assert api.delete(f"/v1/jobs/{worker.job_id}").status_code == 204
    working.join()
    assert worker.storage.folders(f"jobs/{worker.job_id}") == set()


def test_nothing_is_left_of_a_log_that_arrives_after_its_job_was_deleted(
    worker: Worker, api: TestClient, child_runs: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, arrived, is_deleted = worker.supervisor._storage.replace, threading.Event(), threading.Event()

    def hangs(key: str, content: bytes) -> None:
        is_deleted.wait(60)
        replace(key, content)
        arrived.set()

    monkeypatch.setattr(worker.supervisor._storage, "replace", hangs)
    monkeypatch.setattr(supervisor, "LOG_S", 0.1)
    child_runs(logs("why\n", FAILED))
    worker.supervisor.work(worker.job_id, 1)
    assert api.delete(f"/v1/jobs/{worker.job_id}").status_code == 204
    is_deleted.set()
    assert arrived.wait(20)
    eventually(lambda: worker.storage.folders(f"jobs/{worker.job_id}") == set())


@pytest.mark.parametrize("retryable", [False, True], ids=["fails", "crashes"])
def test_no_credential_is_in_what_is_said_of_a_job(
    worker: Worker, api: TestClient, child_runs: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, retryable: bool
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    event = {"kind": "event", "level": "info", "message": "Loading with hf_abcdefgh."}
    error = FAILED["error"] | {"message": "hf_abcdefgh is refused"}
    child_runs(says(event, FAILED | {"error": error, "retryable": retryable}))
    worker.supervisor.work(worker.job_id, 1)
    told = [event.message for event in worker.store.events(worker.job_id)]
    assert "Loading with [withheld]." in told
    assert any("[withheld] is refused" in message for message in told)
    assert "hf_" not in "".join(told) + api.get(f"/v1/jobs/{worker.job_id}").text
