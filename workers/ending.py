"""How the service's processes end: each with the one above it, which waits a little longer than the one below."""

import _thread
import ctypes
import os
import signal
import sys
import threading
from typing import Any

JOB_STOP_S = 120
"""A training process that was asked to stop saves its state."""
DELETIONS_S = 10
"""A worker deletes what its job has left behind."""
WORKER_STOP_S = JOB_STOP_S + 20
"""A worker gives its job back."""
SERVICE_STOP_S = WORKER_STOP_S + 10
"""`serve` ends what it has started."""

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent(parent: int, number: int) -> bool:
    """Asks the kernel for a signal to this process when the thread that started it ends. Returns whether it is still there."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, number)
    return os.getppid() == parent


def set_on_stop_signals(stop: threading.Event) -> None:
    """From now on SIGTERM and SIGINT set `stop`."""

    def handle(*_: Any) -> None:
        # On a thread: the main thread, which runs this, may hold the event's lock just now and would wait for itself.
        # Not a `Thread`, whose start takes locks that the main thread may hold as well.
        _thread.start_new_thread(stop.set, ())

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)
