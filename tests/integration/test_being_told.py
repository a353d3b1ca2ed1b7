"""What processes are told while they are busy: renewals to a training process, signals to a worker."""

import subprocess
import sys
import time

import pytest

from workers.child import ORPHANED

HELD_UP = """
import ctypes, time
from workers.job_process import Orders
Orders(lease_s=2)
print("held up", flush=True)
ctypes.PyDLL(None).usleep(2_500_000)  # by a call that does not let other threads run
time.sleep(0.5)
"""


@pytest.mark.parametrize(("is_renewed", "status"), [(True, 0), (False, ORPHANED)])
def test_a_process_that_was_held_up_looks_for_renewals_before_it_takes_itself_for_an_orphan(
    is_renewed: bool, status: int
) -> None:
    with subprocess.Popen([sys.executable, "-c", HELD_UP], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(1.5)
        if is_renewed:
            process.stdin.write(b'{"kind": "renewed"}\n')
            process.stdin.flush()
        assert process.wait(20) == status


INTERRUPTED = """
import signal, threading
from workers.ending import set_on_stop_signals
stop = threading.Event()
set_on_stop_signals(stop)
with stop._cond:  # as in the middle of `wait`
    signal.raise_signal(signal.SIGTERM)
raise SystemExit(0 if stop.wait(10) else 1)
"""


def test_a_signal_to_a_worker_that_is_just_beginning_to_wait_for_one_stops_it() -> None:
    assert subprocess.run([sys.executable, "-c", INTERRUPTED], timeout=30).returncode == 0
