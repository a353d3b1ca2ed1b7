"""Kills of whatever runs, at random moments, until a number is reached."""

import time
from typing import Any

from tests.faults.following import Following
from tests.faults.history import History
from tests.faults.kills import GIVE_UP_S, MODULES, Killing
from tests.faults.processes import Process
from tests.service import Service

LONGEST_PAUSE_S = 4.0


class RandomKills(Killing):
    """Kills with enough jobs at hand, which take turns."""

    def __init__(self, service: Service, history: History, specs: list[dict[str, Any]], at_once: int) -> None:
        super().__init__(service, history, specs)
        self.at_once = at_once

    def run(self, n_kills: int) -> None:
        """The kills, and then the end of all jobs."""
        while self.n_kills < n_kills:
            draw = self.history.random
            pause, module = draw.uniform(0, LONGEST_PAUSE_S), draw.choice(MODULES)
            is_training, choice = draw.random() < 0.6, draw.random()
            until = time.monotonic() + pause
            while time.monotonic() < until:
                self._refill()
                self.look()
            self._kill_one(module, is_training, choice)
        self.wait()

    def _refill(self) -> None:
        while len(self.open()) < self.at_once:
            self.submit(self.specs[len(self.jobs) % len(self.specs)])

    def _kill_one(self, module: str, is_training: bool, choice: float) -> None:
        """Kills one process of a kind, as soon as there is one whose job may crash once more.

        Starting takes longer than training in so small a job, so that a share of the kills waits for training.
        """
        before = time.monotonic() + GIVE_UP_S
        while not (victims := self._may_crash(module, is_training)):
            assert time.monotonic() < before, "there is nothing to kill"
            self._refill()
        self.kill(*victims[int(choice * len(victims))])

    def _may_crash(self, module: str, is_training: bool) -> list[tuple[Process, Following]]:
        """A job fails at the third crash without a checkpoint in between, so two of them are the most it is given."""
        found = [pair for pair in self.victims(module) if pair[1].crashes < 2]
        return [pair for pair in found if pair[1].is_training or not is_training]
