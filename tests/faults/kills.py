"""SIGKILLs of workers and training processes at random moments, over jobs that must not show it."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from tests.faults import invariants
from tests.faults.following import Following
from tests.faults.history import History
from tests.faults.processes import Process, children, orphans, workers
from tests.service import Service, is_alive

MODULES = ("workers", "workers.job_process")
LONGEST_PAUSE_S = 4.0
GIVE_UP_S = 900
ORPHAN_S = 5


class Kills:
    """Kills until a number is reached, with enough jobs at hand, and then waits for every job."""

    def __init__(self, service: Service, history: History, specs: list[dict[str, Any]], at_once: int) -> None:
        self.service, self.history, self.specs, self.at_once = service, history, specs, at_once
        self.jobs: list[Following] = []
        self.by_module: dict[str, int] = dict.fromkeys(MODULES, 0)

    @property
    def n_kills(self) -> int:
        """Kills so far."""
        return sum(self.by_module.values())

    def run(self, n_kills: int) -> None:
        """The kills, and then the end of all jobs."""
        while self.n_kills < n_kills:
            draw = self.history.random
            pause, module = draw.uniform(0, LONGEST_PAUSE_S), draw.choice(MODULES)
            is_training, choice = draw.random() < 0.6, draw.random()
            until = time.monotonic() + pause
            while time.monotonic() < until:
                self._look()
            self._kill(module, is_training, choice)
        before = time.monotonic() + GIVE_UP_S
        while self._open():
            assert time.monotonic() < before, [following.job for following in self._open()]
            self._look(refill=False)

    def _open(self) -> list[Following]:
        return [following for following in self.jobs if not following.job.is_terminal]

    def _look(self, refill: bool = True) -> None:
        while refill and len(self._open()) < self.at_once:
            self._submit(self.specs[len(self.jobs) % len(self.specs)])
        for following in self._open():
            following.look()
        time.sleep(0.1)

    def _submit(self, spec: dict[str, Any]) -> None:
        job = self.service.client.submit(spec)
        self.jobs.append(Following(self.service, job, spec))
        self.history.add("submit", job=job.id)

    def _kill(self, module: str, is_training: bool, choice: float) -> None:
        """Kills one process of a kind, as soon as there is one whose job may crash once more.

        Starting takes longer than training in so small a job, so that a share of the kills waits for training.
        """
        before = time.monotonic() + GIVE_UP_S
        while not (victims := self._victims(module, is_training)):
            assert time.monotonic() < before, "there is nothing to kill"
        victim, following = victims[int(choice * len(victims))]
        fallen = [child.pid for child in children(self.service.data_dir) if victim.pid in (child.pid, child.parent)]
        try:
            os.kill(victim.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.by_module[module] += 1
        what = {"module": module, "pid": victim.pid, "job": following.job.id, "attempt": following.job.attempt}
        self.history.add("kill", n=self.n_kills, **what, step=following.step, is_training=following.is_training)
        self._expect_gone(fallen)

    def _victims(self, module: str, is_training: bool) -> list[tuple[Process, Following]]:
        """A job fails at the third crash without a checkpoint in between, so two of them are the most it is given.

        The jobs are looked at after the processes: a process that is another job's by then has ended.
        """
        found = workers(self.service.data_dir) if module == "workers" else children(self.service.data_dir)
        self._look()
        by_worker = {invariants.worker_pid(following.job): following for following in self._open()}
        busy = [(process, process.pid if module == "workers" else process.parent) for process in found]
        victims = [(process, by_worker[worker]) for process, worker in busy if worker in by_worker]
        victims.sort(key=lambda pair: pair[0].pid)
        alive = [pair for pair in victims if pair[1].job.status == "running" and pair[1].crashes < 2]
        return [pair for pair in alive if pair[1].is_training or not is_training]

    def _expect_gone(self, pids: list[int]) -> None:
        """A training process goes with its worker."""
        before = time.monotonic() + ORPHAN_S
        while any(is_alive(pid) for pid in pids):
            assert time.monotonic() < before, "a training process has outlived its worker"
            time.sleep(0.05)

    def check(self, undisturbed: dict[int, dict[str, str]], folder: Path) -> None:
        """Every job has succeeded with the bytes of an undisturbed one."""
        for following in self.jobs:
            following.look()
            assert following.job.status == "succeeded", (following.job, following.events[-5:])
            invariants.check(self.service, following.job, following.spec, following.events)
            found = invariants.hashes(self.service, following.job, folder)
            assert found == undisturbed[self.specs.index(following.spec)]
        invariants.check_quiet(self.service)
        assert not orphans(self.service.data_dir)

    def summary(self) -> dict[str, Any]:
        """What was done, in figures."""
        attempts = sum(following.n_attempts for following in self.jobs)
        return {"kills": self.by_module, "jobs": len(self.jobs), "attempts": attempts, "seconds": round(self.history.seconds)}
