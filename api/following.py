"""Who waits for news of which jobs: one look at the database serves all of them."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sae_service.errors import SAEServiceError
from sae_service.jobs.store import JobStore

log = logging.getLogger("api")
POLL_S = 0.5


class Following:
    """Wakes those that follow a job when something about it has changed."""

    def __init__(self, jobs: JobStore) -> None:
        self._jobs = jobs
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._signs: dict[str, Any] = {}
        self._looking: asyncio.Task[None] | None = None

    @contextmanager
    def news(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event that is set when there may be news of the job; whoever waits clears it."""
        event = asyncio.Event()
        self._waiting[job_id].add(event)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            yield event
        finally:
            self._waiting[job_id].discard(event)
            if not self._waiting[job_id]:
                del self._waiting[job_id]
                self._signs.pop(job_id, None)

    async def _look(self) -> None:
        while self._waiting:
            followed = list(self._waiting)
            try:
                signs = await asyncio.to_thread(self._jobs.signs, followed)
            except SAEServiceError:
                # They look themselves, and meet the same error.
                signs = {job_id: object() for job_id in followed}
            for job_id in followed:
                if signs.get(job_id) != self._signs.get(job_id):
                    for event in self._waiting.get(job_id, ()):
                        event.set()
                if job_id in self._waiting:
                    self._signs[job_id] = signs.get(job_id)
            await asyncio.sleep(POLL_S)
