"""A worker on all but the first of several hosts: it takes no jobs, and adds its devices to those of the first one's jobs.

For each attempt it starts a training process, which is told there what to do. What becomes of it, the first host records.
"""

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from sae_service.settings import Settings, child_environment
from workers.assignment import of_host
from workers.ending import WORKER_EXTRA_S, set_on_stop_signals, stop_signals_blocked

log = logging.getLogger("workers")
PAUSE_S = 1.0
ANSWER_S = 2.0


def follow(settings: Settings, device: str | None) -> None:
    """Takes part in one attempt after the other, until it is told to stop; then the attempt in hand is saved, by all hosts.

    Args:
        device: value of CUDA_VISIBLE_DEVICES for the training processes, or None to inherit it.
    """
    assert settings.coordinator is not None
    stop = threading.Event()
    set_on_stop_signals(stop)
    log.info("host %d of %d follows %s", settings.resolved_host_index(), settings.hosts, settings.coordinator)
    while not stop.is_set():
        if _is_there(settings.coordinator):
            log.info("there is a job")
            log.info("the training process has ended with status %d", _take_part(settings, device, stop))
        stop.wait(PAUSE_S)
    log.info("the worker has stopped")


def _is_there(coordinator: str) -> bool:
    """Whether the first host waits for the others: it listens for as long as an attempt takes."""
    host, port = coordinator.rsplit(":", 1)
    with suppress(OSError), socket.create_connection((host, int(port)), timeout=ANSWER_S):
        return True
    return False


def _take_part(settings: Settings, device: str | None, stop: threading.Event) -> int:
    """The exit status of a training process, which ends when the attempt does."""
    with stop_signals_blocked():
        # Its news are those of the first host as well, and heard there.
        process = subprocess.Popen(
            [sys.executable, "-m", "workers.job_process"], env=child_environment(settings, device),
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    assert process.stdin is not None
    # A process that does not listen must not hold up its worker, which has to end it.
    os.set_blocking(process.stdin.fileno(), False)
    _say(process, {"job": None, "attempt": None, "resume_from": [], "trace": None, **of_host(settings)})
    stop_before: float | None = None
    while process.poll() is None:
        if stop.is_set() and stop_before is None:
            stop_before = time.monotonic() + settings.stop_s + WORKER_EXTRA_S / 2
            _say(process, {"kind": "stop"})
        elif stop_before is not None and time.monotonic() > stop_before:
            process.kill()
        else:
            _say(process, {"kind": "renewed"})
        time.sleep(PAUSE_S)
    return process.wait()


def _say(process: subprocess.Popen[bytes], message: dict[str, Any]) -> None:
    """Tells the process; one that has ended is no error."""
    assert process.stdin is not None
    with suppress(OSError):
        process.stdin.write(json.dumps(message).encode() + b"\n")
        process.stdin.flush()
