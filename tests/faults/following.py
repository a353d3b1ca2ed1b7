"""A user who follows jobs through every fault, and knows from their events how they are."""

import re
from typing import Any

from sae_service.errors import ServiceUnavailable
from sae_service.jobs.records import Event, Job
from tests.service import Service


class Following:
    """One job as it is followed: each event is asked for once, behind those that are known."""

    def __init__(self, service: Service, job: Job, spec: dict[str, Any]) -> None:
        self.service, self.job, self.spec = service, job, spec
        self.events: list[Event] = []
        self._step_before = 0

    def look(self) -> None:
        """Takes in what is new; an outage is waited out."""
        try:
            job = self.service.client.job(self.job.id)
            self.events += self.service.client.events(job.id, after=len(self.events))
        except ServiceUnavailable:
            return
        if job.attempt != self.job.attempt:
            self._step_before = self.step
        # After the events: a job that had ended when it was read has no later ones.
        self.job = job

    @property
    def step(self) -> int:
        """The last step that was reported."""
        return self.job.progress.step if self.job.progress else 0

    @property
    def is_training(self) -> bool:
        """Whether this attempt has come as far as to report steps."""
        return self.job.status == "running" and self.step != self._step_before

    @property
    def crashes(self) -> int:
        """Crashes since the last checkpoint; the third ends the job."""
        count = 0
        for event in self.events:
            said = re.search(r"\(crash (\d) of \d\)", event.message)
            count = 0 if event.type == "checkpoint" else int(said[1]) if said else count
        return count

    @property
    def n_checkpoints(self) -> int:
        """Checkpoints so far, of all attempts."""
        return sum(event.type == "checkpoint" for event in self.events)

    @property
    def n_attempts(self) -> int:
        """How often the job was begun."""
        return sum(event.message.startswith("Attempt ") for event in self.events)
