"""The service as its users run it, for tests that kill it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae_service.client import Client
from sae_service.errors import ServiceUnavailable
from sae_service.jobs.records import Job

CLI = [sys.executable, "-c", "from sae_service.cli import app; app()"]
PATIENCE_S = 300


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Service:
    """`sae-service serve` on a port of its own, with a short lease."""

    def __init__(self, data_dir: Path, workers: int = 1, /, **settings: str) -> None:
        self.data_dir, self._workers, self._settings = data_dir, workers, settings
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = Client(self.url)
        self.start()

    def start(self) -> None:
        command = [*CLI, "serve", "--data-dir", str(self.data_dir), "--port", str(self.port), "--workers", str(self._workers)]
        with (self.data_dir / "serve.log").open("ab") as log:
            roots = json.dumps([str(self.data_dir.parent)])
            environment = os.environ | {"SAE_SERVICE_LEASE_S": "6", "SAE_SERVICE_ALLOWED_ROOTS": roots} | self._settings
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        self.until(self.answers)

    def answers(self) -> bool:
        assert self.process.poll() is None, (self.data_dir / "serve.log").read_text()
        try:
            list(self.client.jobs())
        except ServiceUnavailable:
            return False
        return True

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(PATIENCE_S)

    def until(self, condition: Callable[[], Any]) -> None:
        before = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < before, (self.data_dir / "serve.log").read_text()[-3000:]
            time.sleep(0.1)

    def started(self, spec: dict[str, Any]) -> Job:
        """A job in the middle of its training: it has a checkpoint and is not at its end."""
        job = self.client.submit(spec)
        self.until(lambda: self.client.checkpoints(job.id) or self.client.job(job.id).is_terminal)
        job = self.client.job(job.id)
        assert job.status == "running", job
        return job

    def ended(self, job: Job) -> Job:
        *_, last = self.client.watch(job.id, pause_s=0.2)
        return last

    def weights(self, job: Job, folder: Path) -> dict[str, bytes]:
        paths = self.client.download(job.id, folder)
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.suffix == ".safetensors"}


def worker_of(job: Job) -> int:
    assert job.worker is not None
    return int(job.worker.split(":")[1])


def children_of(pid: int) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(child) for child in path.read_text().split()]
    return found


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
