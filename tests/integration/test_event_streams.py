"""Streams of events: each hears of its job at once, and all of them together ask the database once."""

import asyncio
from typing import Any

from sqlalchemy import event

from api.events import stream_of_events
from api.following import POLL_S, Following
from sae_service.jobs.attempts import Attempt
from sae_service.jobs.database import Database
from sae_service.jobs.store import JobStore

SPEC: dict[str, Any] = {"queue": "default", "priority": 0, "metadata": {}}


async def heard(jobs: JobStore, following: Following, job_id: str, words: list[str], until: str) -> None:
    async for part in stream_of_events(jobs, following, job_id, 0):
        words.append(part)
        if until in part:
            return


def test_a_stream_hears_of_events_and_progress_as_they_come(database: Database) -> None:
    jobs = JobStore(database)
    job = jobs.submit(SPEC)[0]

    async def follow() -> list[str]:
        words: list[str] = []
        task = asyncio.create_task(heard(jobs, Following(jobs), job.id, words, "loss"))
        await asyncio.sleep(2 * POLL_S)
        attempt = Attempt(database, job.id, 1)
        await asyncio.to_thread(attempt.claim, "here:1")
        progress = {"step": 5, "total_steps": 9, "tokens": 5, "total_tokens": 9, "tokens_per_s": 1.0, "metrics": {"a": {"loss": 1}}}
        await asyncio.to_thread(attempt.metrics, [{"sae": "a", "step": 5, "loss": 1}], progress)
        await asyncio.wait_for(task, 10 * POLL_S)
        return words

    words = "".join(asyncio.run(follow()))
    assert words.index("queued") < words.index("started on here:1") < words.index('"step": 5')


def test_streams_that_wait_cost_one_look_for_all_of_them(database: Database) -> None:
    jobs, statements = JobStore(database), list[str]()
    ids = [jobs.submit(SPEC)[0].id for _ in range(30)]

    async def wait() -> None:
        following = Following(jobs)
        streams = [asyncio.create_task(heard(jobs, following, job_id, [], "never")) for job_id in ids]
        await asyncio.sleep(4 * POLL_S)
        event.listen(database.engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
        await asyncio.sleep(6 * POLL_S)
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)

    asyncio.run(wait())
    assert 1 <= len(statements) <= 8, statements
