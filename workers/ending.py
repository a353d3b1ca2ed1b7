"""How the service's processes end: each with the one above it, which waits a little longer than the one below."""

import _thread
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

DELETIONS_S = 10
"""A worker deletes what its job has left behind."""
LOG_S = 5
"""Before that it keeps the end of the log."""
WORKER_EXTRA_S = 20
"""So much longer than `stop_s`, in which a training process saves its state, takes a worker to give its job back."""
SERVICE_EXTRA_S = 30
"""And so much longer `serve`, to end what it has started."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent(parent: int, number: int) -> bool:
    """Asks the kernel for a signal to this process when the thread that started it ends. Returns whether it is still there."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, number)
    return os.getppid() == parent


def set_on_stop_signals(stop: threading.Event) -> None:
    """From now on STOP_SIGNALS set `stop`, but for the end of a terminal that nohup has made this process outlive."""

    def handle(*_: Any) -> None:
        # On a thread: the main thread, which runs this, may hold the event's lock just now and would wait for itself.
        # Not a `Thread`, whose start takes locks that the main thread may hold as well.
        _thread.start_new_thread(stop.set, ())

    for number in STOP_SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handle)


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """A process that is started meanwhile does not get STOP_SIGNALS, from its first moment on."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
