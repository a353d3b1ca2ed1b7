"""Whether the API notices that it is stuck."""

import threading

import anyio
from anyio import CapacityLimiter, to_thread

from api.health import STUCK_S, Threads


def test_an_api_whose_threads_are_all_held_by_the_same_requests_for_a_minute_is_stuck() -> None:
    async def seen() -> list[bool]:
        limiter, release, looks = CapacityLimiter(2), threading.Event(), []
        async with anyio.create_task_group() as requests:
            for _ in range(2):
                requests.start_soon(lambda: to_thread.run_sync(release.wait, limiter=limiter))
            while limiter.available_tokens:
                await anyio.sleep(0.01)
            for now[0] in (0.0, STUCK_S - 1, STUCK_S):
                looks.append(threads.are_stuck(limiter))
            release.set()
        return [*looks, threads.are_stuck(limiter)]

    now = [0.0]
    threads = Threads(clock=lambda: now[0])
    assert anyio.run(seen) == [False, False, True, False]


def test_an_api_whose_threads_are_all_busy_with_other_requests_at_each_look_is_not_stuck() -> None:
    async def seen() -> list[bool]:
        limiter, looks = CapacityLimiter(1), []
        for request in range(10):
            limiter.acquire_on_behalf_of_nowait(request)
            looks.append(threads.are_stuck(limiter))
            limiter.release_on_behalf_of(request)
            now[0] += STUCK_S / 2
        return looks

    now = [0.0]
    threads = Threads(clock=lambda: now[0])
    assert not any(anyio.run(seen))
