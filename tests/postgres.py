"""A PostgreSQL server of our own on loopback, which tests may kill."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest


def binaries() -> Path:
    """The folder of the server's programs; skips the test if there is none."""
    found = [shutil.which("initdb"), *sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
    folder = next((Path(str(path)).resolve().parent for path in reversed(found) if path), None)
    if folder is None:
        pytest.skip("no PostgreSQL server on this machine (Debian: apt-get install postgresql)")
    return folder


class Postgres:
    """One server with an empty database."""

    def __init__(self) -> None:
        self._binaries = binaries()
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        # The server refuses to be root, and its user must be able to reach the folder.
        user = "postgres" if os.geteuid() == 0 else None
        if user:
            shutil.chown(self.folder, user)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"postgresql://sae@127.0.0.1:{self.port}/postgres"
        self._options: dict[str, Any] = {"user": user, "cwd": self.folder, "check": True, "stdout": subprocess.DEVNULL}
        self._run("initdb", "-U", "sae", "-A", "trust", "-N")
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run([self._binaries / program, "-D", self.folder / "data", *arguments], **self._options)

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        settings = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder} -c fsync=off"
        for attempt in range(20):
            try:
                self._run("pg_ctl", "-w", "-l", str(self.folder / "log"), "-o", settings, "start")
            except subprocess.CalledProcessError:
                # After a kill, the children of the old server hold its shared memory for a moment.
                if attempt == 19:
                    raise
                time.sleep(0.5)
            else:
                return

    def kill(self) -> None:
        """Ends it as a crash of its machine would."""
        pid = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """Stops the server and removes its files."""
        self._run("pg_ctl", "-m", "immediate", "-w", "stop")
        shutil.rmtree(self.folder)
