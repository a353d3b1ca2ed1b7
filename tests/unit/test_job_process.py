"""The training process, and what it says to its worker."""

import io
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from sae_service.errors import DamagedText, DataNotFound, InvalidSpec, ModelNotFound, NonFiniteLoss
from workers import job_process
from workers.ending import STOP_SIGNALS
from workers.job_process import failure


def test_the_signals_that_stop_its_worker_do_not_stop_it_even_where_they_get_through() -> None:
    def ignored() -> int:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1], 16) for line in lines if line.startswith("SigIgn"))

    process = subprocess.Popen([sys.executable, "-m", "workers.job_process"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        before = time.monotonic() + 30
        while not all(ignored() >> (number - 1) & 1 for number in STOP_SIGNALS):
            assert time.monotonic() < before
            time.sleep(0.05)
        for number in STOP_SIGNALS:
            process.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
    finally:
        process.kill()
        process.communicate()


def test_signs_of_life_reach_the_worker_only_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(job_process, "time", SimpleNamespace(monotonic=lambda: now[0]))
    channel = io.StringIO()
    report = job_process.Report(channel)
    for _ in range(100):
        now[0] += 0.3
        report.alive()
    assert 2 <= len(channel.getvalue().splitlines()) <= 30 / job_process.ALIVE_S


def test_memory_that_does_not_suffice_is_said_even_if_the_error_is_silent() -> None:
    assert failure(MemoryError(), has_trained=False)["error"]["code"] == "out_of_memory"


@pytest.mark.parametrize("error", [DataNotFound("the hub is away"), ModelNotFound("the disk is away"), MemoryError()])
def test_what_was_there_when_a_job_began_and_is_not_now_is_tried_again(error: Exception) -> None:
    assert failure(error, has_trained=True)["retryable"]
    assert not failure(error, has_trained=False)["retryable"]


@pytest.mark.parametrize("error", [NonFiniteLoss(), DamagedText("line 3 cannot be read"), InvalidSpec("no held-out text")])
def test_what_would_come_again_is_not_tried_again(error: Exception) -> None:
    assert not failure(error, has_trained=True)["retryable"]
