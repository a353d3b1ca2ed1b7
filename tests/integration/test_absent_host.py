"""A training process that waits for another host can be told to stop, and says meanwhile that it lives."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from sae_service.settings import Settings
from tests.service import free_port
from workers.assignment import of_host

PATIENCE_S = 60


def test_a_stop_ends_the_wait_for_a_host_that_does_not_come(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, hosts=2, coordinator=f"localhost:{free_port()}", host_index=0)
    news = [json.loads(line) for line in output_of(of_host(settings), stops_after=2)]
    assert [message["kind"] for message in news] == ["event", "alive", "stopped"]
    assert news[0]["message"].startswith("Waiting for the other 1 of 2 hosts")


def output_of(of_host: dict[str, Any], stops_after: int) -> list[str]:
    """What the process says, which is told to stop when it has said so many things."""
    assignment = {"job": "job_1", "attempt": 1, "resume_from": [], "trace": None, **of_host}
    process = subprocess.Popen(
        [sys.executable, "-m", "workers.job_process"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(assignment).encode() + b"\n")
    process.stdin.flush()
    said = [process.stdout.readline().decode() for _ in range(stops_after)]
    process.stdin.write(b'{"kind": "stop"}\n')
    process.stdin.flush()
    said += process.stdout.read().decode().splitlines()
    assert process.wait(PATIENCE_S) == 0
    return said
