"""Kills of one and the same job, again and again, with a new checkpoint between two of them."""

import time
from dataclasses import dataclass
from typing import Any

from tests.faults.following import Following
from tests.faults.history import History
from tests.faults.kills import GIVE_UP_S, MODULES, Killing
from tests.service import Service

LAST_MOMENT = 2 / 3
"""Of a job's checkpoints; until a kill comes about, the job gets ahead."""


@dataclass
class Plan:
    """The kills that a job has yet to suffer: each after a number of checkpoints, and a pause."""

    moments: list[int]
    last_attempt: int = 0
    until: float | None = None


class RepeatedKills(Killing):
    """A number of kills for each of a number of jobs.

    Args:
        longest_pause_s: how long after a new checkpoint a kill may come; in that time a job should not save many more.
    """

    def __init__(
        self, service: Service, history: History, spec: dict[str, Any], at_once: int, longest_pause_s: float
    ) -> None:
        super().__init__(service, history, [spec])
        self.at_once, self.longest_pause_s = at_once, longest_pause_s
        self._n_checkpoints = spec["stream"]["tokens"] // spec["checkpoints"]["every_tokens"]
        self._plans: dict[str, Plan] = {}
        self._give_up_at = 0.0

    def run(self, n_jobs: int, n_kills: int) -> None:
        """The jobs, a few at once, to their ends."""
        while len(self.jobs) < n_jobs or self.open():
            while len(self.jobs) < n_jobs and len(self.open()) < self.at_once:
                moments = self.history.random.sample(range(1, int(LAST_MOMENT * self._n_checkpoints)), n_kills)
                self._plans[self.submit(self.specs[0]).job.id] = Plan(sorted(moments))
                self._give_up_at = time.monotonic() + GIVE_UP_S
            assert time.monotonic() < self._give_up_at, [following.job for following in self.open()]
            self.look()
            for following in self.open():
                if self._is_due(following):
                    self._kill_one_of(following)
        missed = [job for job, plan in self._plans.items() if plan.moments]
        assert not missed, "a job ended before it had been killed as often as it was to be"

    def _is_due(self, following: Following) -> bool:
        """Whether a job has come to its next kill: this attempt has saved something, and a pause has passed since."""
        plan = self._plans[following.job.id]
        has_saved = following.job.attempt > plan.last_attempt and following.crashes == 0
        if not plan.moments or not has_saved or following.n_checkpoints < plan.moments[0]:
            return False
        if plan.until is None:
            plan.until = time.monotonic() + self.history.random.uniform(0, self.longest_pause_s)
        return time.monotonic() >= plan.until

    def _kill_one_of(self, following: Following) -> None:
        """Kills the job's worker or its training process, if it still has one."""
        plan, module = self._plans[following.job.id], self.history.random.choice(MODULES)
        mine = [process for process, other in self.victims(module) if other is following and self._is_due(following)]
        if mine and self.kill(mine[0], following):
            plan.last_attempt, plan.until = following.job.attempt, None
            del plan.moments[0]
            self._give_up_at = time.monotonic() + GIVE_UP_S
