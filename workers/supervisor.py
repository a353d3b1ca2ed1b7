"""One attempt at a job, from the claim to its end: the worker's side. Imports neither torch nor jax."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from sae_service import counters, logs, tracing
from sae_service.errors import DatabaseFailure, LeaseLost, ServiceUnavailable, StorageFailure, WorkerCrashed, as_stored
from sae_service.jobs.attempts import Attempt
from sae_service.jobs.database import Database
from sae_service.settings import Settings, child_environment
from sae_service.storage import attempt_logs
from sae_service.storage.job_folders import job_folder, log_folder
from sae_service.storage.objects import Storage
from workers.assignment import of_host
from workers.child import ORPHANED, Child
from workers.child_log import ChildLog
from workers.credentials import Withholder, credentials
from workers.deletions import Deletions
from workers.ending import DELETIONS_S, LOG_S
from workers.lease import Lease

log = logging.getLogger("workers")
T = TypeVar("T")
PAUSE_S = 0.25


class Supervisor:
    """Works on one attempt at a time, each in a process of its own."""

    def __init__(self, database: Database, settings: Settings, worker: str, device: str | None) -> None:
        """Makes a supervisor.

        Args:
            worker: this process's unique name.
            device: value of CUDA_VISIBLE_DEVICES for the training processes, or None to inherit it.
        """
        self._database, self._settings, self._worker, self._device = database, settings, worker, device
        self._storage = Storage(settings.resolved_storage_url())
        self.deletions = Deletions(self._storage)
        self.stopping = threading.Event()

    def work(self, job_id: str, number: int) -> None:
        """Carries out an attempt, whatever becomes of it: an error that nobody foresaw is recorded as what it is."""
        attempt = Attempt(self._database, job_id, number)
        with logs.about(job=job_id, attempt=number):
            try:
                self._begin(attempt)
            except Exception as error:  # the last resort: without it the job would stand still until its lease is over
                log.exception("the attempt has met an unexpected error")
                described = as_stored(error)
                with suppress(LeaseLost, DatabaseFailure):
                    _persist(lambda: attempt.record_crash(described))

    def _begin(self, attempt: Attempt) -> None:
        spec = _persist(lambda: attempt.claim(self._worker))
        if spec is not None:
            above = _persist(attempt.trace) if self._settings.tracing else None
            with tracing.span("attempt", above, job=attempt.job_id, attempt=attempt.number):
                self._work(attempt, spec)

    def _work(self, attempt: Attempt, spec: dict[str, Any]) -> None:
        log.info("attempt started")
        try:
            if self.stopping.is_set():
                _persist(attempt.release)
            else:
                self._train(attempt, spec)
        except LeaseLost:
            log.warning("the attempt is over: another worker may have the job")
        if _persist(attempt.is_last):
            # No other attempt can follow, so whatever is left over is nobody's.
            self._collect(attempt, is_over=True)
        self.deletions.wait(DELETIONS_S)

    def _train(self, attempt: Attempt, spec: dict[str, Any]) -> None:
        children: list[Child] = []

        def renewed() -> None:
            for child in children:
                child.say({"kind": "renewed"})

        lease = Lease(attempt, self._settings.lease_s, renewed, self.stopping)
        try:
            ended = self._without_storage(attempt, lease) or self._start(attempt, spec, children)
            if ended is None:
                ended = self._follow(attempt, children[0], lease, spec["checkpoints"]["keep"])
        finally:
            try:
                # First of all: it may be what the lease's thread waits for.
                for child in children:
                    child.kill()
                    child.log.store(LOG_S, is_growing=False)
            finally:
                counters.TOKENS_PER_SECOND.set(0)
                lease.close()
                for child in children:
                    child.close()
        # Only now: whoever reads "cancelled" may rely on the process being gone.
        if ended is not None:
            _persist(ended)
        else:
            # A job that was being cancelled when its final checkpoint came has not succeeded by it.
            with suppress(LeaseLost):
                _persist(attempt.release)

    def _without_storage(self, attempt: Attempt, lease: Lease) -> Callable[[], None] | None:
        """Waits until the storage answers: a process that needs it at once would crash. Returns how the attempt is to be
        ended, if that comes first. What does not come back for as long as a hang may last is the process's to report.
        """
        began, told = time.monotonic(), False
        while time.monotonic() - began < self._settings.hang_s:
            try:
                self._storage.folders(job_folder(attempt.job_id))
                return None
            except StorageFailure as error:
                text = f"{error} The job waits for the storage."
            log.warning("%s", text)
            if not told:
                with suppress(LeaseLost):
                    _persist(lambda text=text: attempt.event("warning", text), lease)
                told = True
            over = _over(attempt, lease)
            if over is not None or self._is_to_stop(lease):
                return over or attempt.release
            time.sleep(PAUSE_S)
        return None

    def _is_to_stop(self, lease: Lease) -> bool:
        return self.stopping.is_set() or lease.status == "pausing"

    def _start(self, attempt: Attempt, spec: dict[str, Any], children: list[Child]) -> Callable[[], None] | None:
        """Adds the process that trains to `children`. Returns how the attempt is to be ended if it cannot be started."""
        # Whoever wrote the others is gone: its lease is over, or this attempt could not have begun.
        committed = self._collect(attempt, is_over=False)
        assignment = {
            "job": attempt.job_id,
            "attempt": attempt.number,
            "spec": spec,
            "project": _persist(attempt.project) if self._settings.projects else None,
            "prefix": job_folder(attempt.job_id),
            "resume_from": committed,
            "begin_with": _persist(attempt.origin_key),
            "trace": tracing.current(),
            **of_host(self._settings),
        }
        environment = child_environment(self._settings, self._device)
        path = self._settings.data_dir / "logs" / f"{attempt.job_id}.{attempt.number}.log"
        store, withheld = partial(_store_log, self._storage, attempt), Withholder(credentials(environment))
        try:
            children.append(Child(environment, ChildLog(path, store, withheld), assignment))
        except OSError as error:
            return _crash(attempt, f"The training process cannot be started: {error}")
        return None

    def _follow(self, attempt: Attempt, child: Child, lease: Lease, keep: int) -> Callable[[], None] | None:
        """Records what the process reports. Returns how the attempt is to be ended once the process is gone."""
        result: dict[str, Any] = {}
        stop_before: float | None = None
        heard = time.monotonic()
        for message in child.messages(PAUSE_S):
            if message is not None and message["kind"] == "finished":
                # The last word: a job that has succeeded has no lease any more, and that is no loss.
                result = message
                break
            if (over := _over(attempt, lease)) is not None:
                return over
            if self._is_to_stop(lease) and stop_before is None:
                stop_before = time.monotonic() + self._settings.stop_s
                child.say({"kind": "stop"})
            if stop_before is not None and time.monotonic() > stop_before:
                return attempt.release
            if message is None and time.monotonic() - heard > self._settings.hang_s:
                text = f"The training process has said nothing for {self._settings.hang_s:.0f} s."
                return _crash(attempt, text)
            if message is None:
                continue
            heard = time.monotonic()
            if message["kind"] == "checkpoint" and message["checkpoint"]["is_final"]:
                # Whoever reads "succeeded" finds the log.
                child.log.store(LOG_S, is_growing=True)
            if message["kind"] in ("failed", "stopped"):
                result = message
                break
            try:
                self._record(attempt, child, message, lease, keep)
            except LeaseLost:
                # The database was away for too long, which is no crash; if the job is another's, that is refused.
                return attempt.release
        return _ending(attempt, result, child)

    def _record(self, attempt: Attempt, child: Child, message: dict[str, Any], lease: Lease, keep: int) -> None:
        began = time.monotonic()
        match message["kind"]:
            case "event":
                text = child.log.withheld(message["message"])
                _persist(lambda: attempt.event(message["level"], text), lease)
            case "metrics":
                counters.TOKENS_PER_SECOND.set(message["progress"]["tokens_per_s"])
                _persist(lambda: attempt.metrics(message["rows"], message["progress"]), lease)
            case "checkpoint":
                counters.CHECKPOINT_SECONDS.observe(message["seconds"])
                for key in _persist(lambda: attempt.commit(message["checkpoint"], keep), lease):
                    self.deletions.add(key)
            case _:
                return
        lease.renewed(began)

    def _collect(self, attempt: Attempt, is_over: bool) -> list[str]:
        """Deletes what was written for the job but never became part of it. Returns what did."""
        written: set[str] = set()
        try:
            written = self._storage.folders(job_folder(attempt.job_id))
        except StorageFailure as error:
            log.warning("%s", error)
        if not is_over:
            # After the listing: it has nothing of a later attempt's, however long this one has been held up.
            _persist(attempt.renew)
        committed = _persist(attempt.checkpoint_keys)
        for key in _persist(lambda: attempt.orphans(written)):
            self.deletions.add(key)
        return committed


def _over(attempt: Attempt, lease: Lease) -> Callable[[], None] | None:
    """How the attempt is to be ended at once, if it is. Raises LeaseLost."""
    if lease.is_lost:
        raise LeaseLost
    if lease.status == "cancelling":
        return attempt.cancel
    return attempt.release if lease.is_expired else None


def _ending(attempt: Attempt, result: dict[str, Any], child: Child) -> Callable[[], None] | None:
    """What to record after the process has ended by itself."""
    status = child.wait()
    match result.get("kind"):
        case "finished":
            return None
        case "stopped":
            return attempt.release
        case "failed":
            error = result["error"] | {"message": child.log.withheld(result["error"]["message"])}
            return lambda: (attempt.record_crash if result["retryable"] else attempt.fail)(error)
    if status == ORPHANED:
        # The lease could not be renewed for a while, which is no crash; it may have come back just now.
        return attempt.release
    text = f"The training process ended with status {status}. Its last lines:\n{child.log.last_words()}"
    return _crash(attempt, text)


def _store_log(storage: Storage, attempt: Attempt, end: bytes) -> None:
    """Stores the end of the attempt's log. Nothing is left of it if the job was deleted while it was on its way."""
    attempt_logs.store(storage, attempt.job_id, attempt.number, end)
    with suppress(ServiceUnavailable):
        if attempt.is_gone():
            storage.delete(log_folder(attempt.job_id))


def _crash(attempt: Attempt, text: str) -> Callable[[], None]:
    return lambda: attempt.record_crash(WorkerCrashed(text).as_dict())


def _persist(action: Callable[[], T], lease: Lease | None = None) -> T:
    """The result of `action`, which is repeated while the database is away, unless the lease expires meanwhile."""
    while True:
        try:
            return action()
        except ServiceUnavailable as error:
            log.warning("%s", error)
            if lease is not None and lease.is_expired:
                raise LeaseLost from error
            time.sleep(1)
