"""The signals that stop a process of the service."""

import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, threading
from workers.ending import set_on_stop_signals

stop = threading.Event()
signal.signal(signal.SIGHUP, getattr(signal, "{before}"))
set_on_stop_signals(stop)
os.kill(os.getpid(), signal.{sent})
print(stop.wait({wait_s}))
"""


@pytest.mark.parametrize("sent", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_to_stop_is_noticed(sent: str) -> None:
    assert said(before="SIG_DFL", sent=sent, wait_s=30) == "True"


def test_a_process_that_nohup_has_started_outlives_its_terminal() -> None:
    assert said(before="SIG_IGN", sent="SIGHUP", wait_s=0.5) == "False"


def said(**values: object) -> str:
    """What the program prints."""
    command = [sys.executable, "-c", PROGRAM.format(**values)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
