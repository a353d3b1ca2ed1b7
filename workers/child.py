"""The training process as its worker sees it: started, listened to, asked to stop, ended."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

from workers.child_log import ChildLog
from workers.ending import stop_signals_blocked

KILL_WAIT_S = 30
ORPHANED = 70
"""Exit status of a process that has heard nothing of its worker for half a lease, or whose worker is gone."""


class Child:
    """A running training process. It dies with its worker: by the parent's death signal, and when its input ends."""

    def __init__(self, environment: dict[str, str], log: ChildLog, assignment: dict[str, Any]) -> None:
        """Starts the process; what it prints goes to `log`. Raises OSError if the host cannot start it."""
        self.log = log
        # Whoever stops a whole group of processes means the worker, which asks for a checkpoint and kills if none comes.
        with log.open() as file, stop_signals_blocked():
            self._process = subprocess.Popen(
                [sys.executable, "-m", "workers.job_process"],
                env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, start_new_session=True,
            )  # fmt: skip
        assert self._process.stdin is not None
        self._stdin = self._process.stdin
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._writing = threading.Lock()
        threading.Thread(target=self._read, name="child messages", daemon=True).start()
        self.say(assignment)
        # A process that does not listen must not hold up whoever talks to it: its lease is renewed on that thread.
        os.set_blocking(self._stdin.fileno(), False)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                try:
                    self._messages.put(json.loads(line))
                except ValueError:
                    # A line cut off by a kill: everything before it has been read.
                    break
        self._messages.put(None)

    def say(self, message: dict[str, Any]) -> None:
        """Sends a message; a process that is gone or does not listen is no error here, others notice that."""
        line = json.dumps(message).encode() + b"\n"
        try:
            with self._writing:
                # Not through a buffer: a short line is written as a whole or not at all.
                while line:
                    line = line[os.write(self._stdin.fileno(), line) :]
        except (OSError, ValueError):
            return

    def messages(self, pause_s: float) -> Iterator[dict[str, Any] | None]:
        """What the process says until it ends; None after each pause without a word."""
        while True:
            self.log.look()
            try:
                message = self._messages.get(timeout=pause_s)
            except queue.Empty:
                yield None
                continue
            if message is None:
                return
            yield message

    def kill(self) -> int:
        """Ends the process at once, if it has not ended, and returns its exit status."""
        if self._process.poll() is None:
            self._process.kill()
        return self._process.wait(KILL_WAIT_S)

    def close(self) -> None:
        """Closes the way to a process that has ended, and its log."""
        self.log.close()
        with self._writing:
            self._stdin.close()

    def wait(self) -> int:
        """Waits for a process that is about to end by itself."""
        try:
            return self._process.wait(KILL_WAIT_S)
        except subprocess.TimeoutExpired:
            return self.kill()
