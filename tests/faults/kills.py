"""SIGKILLs of workers and training processes, over jobs that must not show it."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from tests.faults import invariants
from tests.faults.following import Following
from tests.faults.history import History
from tests.faults.processes import Process, children, orphans, workers
from tests.faults.results import Result, check_alike, result
from tests.service import Service, is_alive

MODULES = ("workers", "workers.job_process")
GIVE_UP_S = 900
ORPHAN_S = 5


class Killing:
    """Jobs that are followed, the kills of their processes, and what must hold in the end."""

    def __init__(self, service: Service, history: History, specs: list[dict[str, Any]]) -> None:
        self.service, self.history, self.specs = service, history, specs
        self.jobs: list[Following] = []
        self.by_module: dict[str, int] = dict.fromkeys(MODULES, 0)
        self.by_job: dict[str, int] = {}
        self.n_compared = 0

    @property
    def n_kills(self) -> int:
        """Kills so far."""
        return sum(self.by_module.values())

    def submit(self, spec: dict[str, Any]) -> Following:
        """One more job."""
        job = self.service.client.submit(spec)
        self.jobs.append(Following(self.service, job, spec))
        self.by_job[job.id] = 0
        self.history.add("submit", job=job.id)
        return self.jobs[-1]

    def open(self) -> list[Following]:
        """The jobs that have not ended."""
        return [following for following in self.jobs if not following.job.is_terminal]

    def look(self) -> None:
        """Takes in what is new of every job."""
        for following in self.open():
            following.look()
        time.sleep(0.1)

    def victims(self, module: str) -> list[tuple[Process, Following]]:
        """The processes of a kind, each with its job that runs.

        The jobs are looked at after the processes: a process that is another job's by then has ended.
        """
        found = workers(self.service.data_dir) if module == "workers" else children(self.service.data_dir)
        self.look()
        by_worker = {invariants.worker_pid(following.job): following for following in self.open()}
        busy = [(process, process.pid if module == "workers" else process.parent) for process in found]
        victims = [(process, by_worker[worker]) for process, worker in busy if worker in by_worker]
        victims.sort(key=lambda pair: pair[0].pid)
        return [pair for pair in victims if pair[1].job.status == "running"]

    def kill(self, victim: Process, following: Following) -> bool:
        """Kills a process; a training process goes with its worker. Returns False if it had ended."""
        fallen = [child.pid for child in children(self.service.data_dir) if victim.pid in (child.pid, child.parent)]
        try:
            os.kill(victim.pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        self.by_module[victim.module] += 1
        self.by_job[following.job.id] += 1
        what = {"module": victim.module, "pid": victim.pid, "job": following.job.id, "attempt": following.job.attempt}
        self.history.add("kill", n=self.n_kills, **what, step=following.step, is_training=following.is_training)
        before = time.monotonic() + ORPHAN_S
        while any(is_alive(pid) for pid in fallen):
            assert time.monotonic() < before, "a training process has outlived its worker"
            time.sleep(0.05)
        return True

    def wait(self) -> None:
        """Waits for the end of all jobs."""
        before = time.monotonic() + GIVE_UP_S
        while self.open():
            assert time.monotonic() < before, [following.job for following in self.open()]
            self.look()

    def check(self, undisturbed: list[Result], folder: Path) -> None:
        """Every job has succeeded, and has in every checkpoint what an undisturbed one has."""
        for following in self.jobs:
            following.look()
            assert following.job.status == "succeeded", (following.job, following.events[-5:])
            invariants.check(self.service, following.job, following.spec, following.events)
            found = result(self.service, following.job, folder)
            check_alike(found, undisturbed[self.specs.index(following.spec)])
            self.n_compared += len(found.states)
        invariants.check_quiet(self.service)
        assert not orphans(self.service.data_dir)

    def summary(self) -> dict[str, Any]:
        """What was done, in figures."""
        attempts, most = sum(following.n_attempts for following in self.jobs), max(self.by_job.values(), default=0)
        return {
            "kills": self.by_module, "most kills of one job": most, "jobs": len(self.jobs), "attempts": attempts,
            "checkpoints compared": self.n_compared, "seconds": round(self.history.seconds),
        }  # fmt: skip
