"""Looks for lost attempts at times that a test chooses."""

from sae_service.jobs.database import Database
from sae_service.jobs.lost_attempts import LostAttempts
from sae_service.jobs.store import JobStore


class Looks(LostAttempts):
    """Looks with a lease of 60 s; `now` is the time on their clock."""

    now = 0.0

    def __init__(self, database: Database) -> None:
        super().__init__(database, lease_s=60, clock=lambda: self.now)

    def at(self, *times: float) -> None:
        for self.now in times:
            self.look()

    def statuses(self, store: JobStore, job_id: str, *times: float) -> list[str]:
        """A job's status after looks at these times."""
        found: list[str] = []
        for time in times:
            self.at(time)
            found.append(store.get(job_id).status)
        return found
