"""The events of a job, as a page or as a stream (server-sent events)."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from api.access import holder
from api.dependencies import Jobs
from api.following import Following
from api.jobs import Page, page
from sae_service.errors import SAEServiceError
from sae_service.jobs.records import Event
from sae_service.jobs.store import JobStore

router = APIRouter(tags=["events"])
KEEP_ALIVE_S = 15.0
STREAM_HEADERS = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}


async def _following(request: Request) -> Following:
    return request.app.state.following


@router.get(
    "/jobs/{job_id}/events",
    response_model=Page[Event],
    responses={200: {"content": {"text/event-stream": {}}}, 204: {"description": "The stream has ended."}},
)
def list_events(
    request: Request,
    job_id: str,
    jobs: Jobs,
    following: Annotated[Following, Depends(_following)],
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[int, Query(ge=0, lt=1 << 31, description="The id of the last event seen.")] = 0,
    stream: Annotated[bool, Query(description="Send events as they happen, until the job ends.")] = False,
    last_event_id: Annotated[int | None, Header(ge=0, lt=1 << 31)] = None,
) -> Response | Page[Event]:
    """What happened to a job, oldest first. Event ids count from 1 without a gap; metrics in a stream carry no id."""
    job = jobs.get(job_id)
    after = after if last_event_id is None else last_event_id
    if not stream:
        return page(jobs.events(job_id, after, limit + 1), limit)
    if job.is_terminal and not jobs.events(job_id, after, 1):
        return Response(status_code=204)
    parts = _while_allowed(request, stream_of_events(jobs, following, job_id, after))
    return StreamingResponse(parts, media_type="text/event-stream", headers=STREAM_HEADERS)


async def _while_allowed(request: Request, parts: AsyncIterator[str]) -> AsyncIterator[str]:
    """The parts of a stream until the key that it was asked for with is revoked or has expired."""
    async for part in parts:
        if await holder(request) is None:
            return
        yield part


async def stream_of_events(jobs: JobStore, following: Following, job_id: str, after: int) -> AsyncIterator[str]:
    """What a client hears of a job behind the event `after`, as server-sent events, until the job has ended or is gone."""
    yield "retry: 2000\n\n"
    step = 0
    with following.news(job_id) as news:
        while True:
            # Before the look: what happens during it wakes us again.
            news.clear()
            try:
                job = await asyncio.to_thread(jobs.get, job_id)
                found = await asyncio.to_thread(jobs.events, job_id, after)
            except SAEServiceError:
                # The client comes back by itself, with the last id that it has seen; or the job was deleted, as it then hears.
                return
            for event in found:
                after = event.id
                yield f"id: {event.id}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n"
            if job.progress is not None and job.progress.step != step:
                step = job.progress.step
                yield f"event: metrics\ndata: {json.dumps(job.progress.model_dump())}\n\n"
            yield ": still here\n\n"
            if found:
                continue
            if job.is_terminal:
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), KEEP_ALIVE_S)
