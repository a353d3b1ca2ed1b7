"""A worker of its own, beside a service that has none or others: `sae-service worker`."""

import os
import signal
import subprocess
from pathlib import Path

from tests.service import CLI, PATIENCE_S


class Worker:
    """One worker process with settings of its own."""

    def __init__(self, data_dir: Path, within: tuple[str, ...] = (), /, **settings: str) -> None:
        """Starts it; `within` is a command that runs another, such as one that enters a network namespace."""
        self.data_dir = data_dir
        self.data_dir.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"SAE_SERVICE_LEASE_S": "6"} | settings
        with (data_dir / "worker.log").open("ab") as log:
            command = [*within, *CLI, "worker", "--data-dir", str(data_dir)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    @property
    def pid(self) -> int:
        """The worker's process id, which is also in the job's `worker`."""
        return self.process.pid

    def close(self) -> None:
        """Ends it in order, whatever state it is in."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
