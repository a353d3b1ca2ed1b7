"""The training process: reads one assignment from its input, trains, and reports line by line.

Its own output is a private channel to the worker; whatever a library prints goes to the log.
"""

import json
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from sae_service import logs, tracing
from workers.assignment import OF_LEADER
from workers.child import ORPHANED
from workers.ending import STOP_SIGNALS, die_with_parent

log = logging.getLogger("training")
ALIVE_S = 5


def main() -> None:
    """Carries out the assignment. The exit status is 0 whenever the worker has been told how it ended."""
    # They are blocked from the first moment on, but there are libraries that let them through again.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if not die_with_parent(os.getppid(), signal.SIGKILL):
        os._exit(ORPHANED)
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    assignment = json.loads(sys.stdin.buffer.raw.readline())  # pyright: ignore[reportAttributeAccessIssue]
    logs.configure(assignment["log_format"], assignment["log_level"], job=assignment["job"], attempt=assignment["attempt"])
    if assignment["trace"] is not None:
        tracing.start("training", assignment["trace"])
    orders = Orders(assignment["lease_s"])
    report = Report(channel)
    try:
        report.say(train(assignment, report, orders))
    except Exception as error:  # the outermost: the worker records what it was, as nobody else could
        log.exception("the attempt has failed")
        report.say(failure(error, has_trained=bool(assignment["resume_from"]) or report.has_saved))
        if assignment["hosts"] is not None:
            # An orderly end would wait for the other hosts, which wait for this one.
            os._exit(0)


class Orders:
    """Listens to the worker on a thread: a stop is remembered, silence for half a lease ends the process."""

    def __init__(self, lease_s: float) -> None:
        self.stop = threading.Event()
        self._silence_s = lease_s / 2
        threading.Thread(target=self._listen, name="orders", daemon=True).start()

    def _listen(self) -> None:
        heard, pending = time.monotonic(), b""
        while True:
            # Before the look: if this thread is held up now, what has come meanwhile is still seen.
            is_late = time.monotonic() - heard > self._silence_s
            ready, _, _ = select.select([0], [], [], 0 if is_late else 0.5)
            if ready:
                chunk = os.read(0, 1 << 16)
                if not chunk:
                    os._exit(ORPHANED)
                heard = time.monotonic()
                *lines, pending = (pending + chunk).split(b"\n")
                if any(json.loads(line)["kind"] == "stop" for line in lines):
                    self.stop.set()
            elif is_late:
                os._exit(ORPHANED)


class Report:
    """The pipeline's reporter: each piece of news is one line to the worker."""

    def __init__(self, channel: TextIO) -> None:
        self._channel, self._writing = channel, threading.Lock()
        self.total_steps = self.total_tokens = 0
        self.has_saved = False
        self._said = time.monotonic()
        self.looked_ns: int | None = None

    def say(self, message: dict[str, Any]) -> None:
        """Sends a line; NaN becomes null."""
        from sae_service.storage.artifacts import finite_or_null

        line = json.dumps(finite_or_null(message)) + "\n"
        with self._writing:
            self._channel.write(line)
            self._channel.flush()
            self._said = time.monotonic()

    def event(self, level: str, message: str) -> None:
        """A sentence for the user."""
        getattr(log, level)("%s", message)
        self.say({"kind": "event", "level": level, "message": message})

    def metrics(self, rows: list[dict[str, Any]]) -> None:
        """The metrics, and how far the job is."""
        first = rows[0]
        self._trace(first["step"], first["tokens_per_s"])
        log.info("step %d of %d, %.0f tokens a second", first["step"], self.total_steps, first["tokens_per_s"])
        progress = {
            "step": first["step"],
            "total_steps": self.total_steps,
            "tokens": first["tokens"],
            "total_tokens": self.total_tokens,
            "tokens_per_s": first["tokens_per_s"],
            "metrics": {row["sae"]: {name: row[name] for name in row if name != "held_out"} for row in rows},
        }
        if "held_out" in first:
            progress["held_out"] = {row["sae"]: {"step": row["step"], **row["held_out"]} for row in rows}
        self.say({"kind": "metrics", "rows": rows, "progress": progress})

    def _trace(self, step: int, tokens_per_s: float) -> None:
        """One span for the steps since the last look: one each would be too many."""
        now = time.time_ns()
        with tracing.span("steps", began_ns=self.looked_ns, last=step, tokens_per_s=tokens_per_s):
            self.looked_ns = now

    def checkpoint(self, written: Any) -> None:
        """A checkpoint that is ready to be committed."""
        self.has_saved = True
        log.info("checkpoint at step %d", written.step)
        committed = asdict(written)
        self.say({"kind": "checkpoint", "seconds": committed.pop("written_s"), "checkpoint": committed})

    def alive(self) -> None:
        """The job goes on; passed on if nothing else has been said for a while."""
        if time.monotonic() - self._said > ALIVE_S:
            self.say({"kind": "alive"})


@contextmanager
def waiting(report: Report, orders: Orders) -> Iterator[None]:
    """While a library waits for others: shows signs of life, and ends the process if the job is to stop."""
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(1):
            report.alive()
            if orders.stop.is_set():
                report.say({"kind": "stopped"})
                os._exit(0)

    threading.Thread(target=look, name="waiting", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def together(assignment: dict[str, Any], report: Report, orders: Orders) -> dict[str, Any]:
    """The whole assignment of one of several hosts, once all are there."""
    from sae_service import hosts

    place = assignment["hosts"]
    if place["index"] == 0:
        report.event("info", f"Waiting for the other {place['n_hosts'] - 1} of {place['n_hosts']} hosts at {place['coordinator']}.")
    with waiting(report, orders):
        hosts.join(**place)
    known = json.dumps({name: assignment.get(name) for name in OF_LEADER})
    return assignment | json.loads(hosts.from_leader(known.encode()))


def train(assignment: dict[str, Any], report: Report, orders: Orders) -> dict[str, Any]:
    """Runs the pipeline. Returns the message that ends the attempt."""
    if assignment["hosts"] is not None:
        assignment = together(assignment, report, orders)
    import jax

    from sae_service import hosts, kinds
    from sae_service.readable import Roots
    from sae_service.spec.kinds import model_of, wants_cache
    from sae_service.spec.stored import read
    from sae_service.storage.objects import Storage
    from sae_service.surroundings import Surroundings

    job = read(assignment["spec"])
    if (model := model_of(job)) is not None:
        report.event("info", f"Loading the model {model.name}.")
    report.total_steps, report.total_tokens = job.total_steps, job.total_tokens
    report.looked_ns = time.time_ns()
    storage = Storage(assignment["storage_url"])
    around = Surroundings(
        storage,
        assignment["prefix"],
        report,
        should_stop=orders.stop.is_set,
        resume_from=assignment["resume_from"],
        begin_with=assignment["begin_with"],
        device="cuda" if jax.default_backend() == "gpu" else "cpu",
        alive=report.alive,
        cache=cache_of(assignment, report) if wants_cache(job) else None,
        roots=Roots(*(tuple(map(Path, assignment[name])) for name in ("readable_roots", "closed_folders"))),
    )
    final = kinds.run(job, around)
    if assignment["hosts"] is not None:
        hosts.leave()
    return {"kind": "stopped" if final is None else "finished"}


def cache_of(assignment: dict[str, Any], report: Report) -> Any:
    """The activation cache, or None if there is none, or it does not answer: a job needs none."""
    from sae_service.errors import StorageFailure
    from sae_service.storage.cache import ActivationCache
    from sae_service.storage.objects import Storage

    if not assignment["cache_bytes"]:
        return None
    try:
        return ActivationCache(Storage(assignment["cache_url"]), assignment["cache_bytes"], assignment["project"])
    except StorageFailure as error:
        report.event("warning", f"There is no activation cache: {error}")
        return None


def failure(error: Exception, has_trained: bool) -> dict[str, Any]:
    """The message that ends the attempt in failure.

    Args:
        has_trained: there is a checkpoint, so model, text and memory were there: it counts as a crash if they are not now.
    """
    from sae_service.errors import NO_MEMORY, DamagedText, DataNotFound, ModelNotFound, OutOfMemory, SAEServiceError, as_stored

    is_full = isinstance(error, MemoryError) or any(sign in str(error) for sign in NO_MEMORY)
    if is_full and not isinstance(error, OutOfMemory):
        hint = "Reduce stream.buffer_rows, stream.prompts, stream.batch, d_sae or the number of saes."
        said = (str(error) or type(error).__name__).splitlines()[0]
        error = OutOfMemory(f"The device's memory does not suffice: {said}", hint=hint)
    if isinstance(error, SAEServiceError):
        was_there = isinstance(error, DataNotFound | ModelNotFound | OutOfMemory) and not isinstance(error, DamagedText)
        return {"kind": "failed", "error": error.as_dict(), "retryable": error.retryable or (has_trained and was_there)}
    # Nobody has foreseen it, so nobody knows that it would come again: it counts as a crash, three of which are the end.
    return {"kind": "failed", "error": as_stored(error), "retryable": True}


if __name__ == "__main__":
    main()
