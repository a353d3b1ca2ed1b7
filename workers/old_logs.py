"""The logs of training processes on this machine, which go with their jobs."""

from contextlib import suppress
from pathlib import Path

from sae_service.jobs.store import JobStore

AT_ONCE = 1000
"""Jobs in one look."""


class OldLogs:
    """Deletes the logs, `<job>.<attempt>.log`, of jobs that are not there any more."""

    def __init__(self, folder: Path, store: JobStore) -> None:
        self._folder, self._store = folder, store
        self._ids: list[str] = []

    def look(self) -> None:
        """Looks at the logs of the next jobs. Raises ServiceUnavailable."""
        if not self._ids:
            self._ids = sorted({path.name.split(".")[0] for path in self._folder.glob("job_*.log")})
        ids, self._ids = self._ids[:AT_ONCE], self._ids[AT_ONCE:]
        for job_id in set(ids) - self._store.signs(ids).keys():
            for path in self._folder.glob(f"{job_id}.*.log"):
                with suppress(OSError):
                    path.unlink(missing_ok=True)
