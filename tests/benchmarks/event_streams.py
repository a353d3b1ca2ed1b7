"""How long a GET takes while many follow their jobs: streams of events and an open loop of requests against one API process.

    python -m tests.benchmarks.event_streams [--streams 200] [--rate 50] [--seconds 20] [--core 0]

The API runs alone on one core. One job in twenty reports metrics once a second. Prints the latencies of GET /v1/jobs/{id} and
the CPU time of the API.
"""

import argparse
import asyncio
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from sae_service.jobs.attempts import Attempt
from sae_service.jobs.database import Database
from sae_service.jobs.migration import migrate
from sae_service.jobs.store import JobStore
from tests.api_process import started

SPEC: dict[str, Any] = {"queue": "default", "priority": 0, "metadata": {}}


def report(database: Database, job_ids: list[str], over: threading.Event) -> None:
    """Metrics of the jobs, once a second each."""
    attempts = [Attempt(database, job_id, 1) for job_id in job_ids]
    for attempt in attempts:
        attempt.claim("here:1")
    step = 0
    while not over.wait(1):
        step += 1
        progress = {"step": step, "total_steps": 999, "tokens": step, "total_tokens": 999, "tokens_per_s": 1.0, "metrics": {}}
        for attempt in attempts:
            attempt.metrics([{"sae": "a", "step": step}], progress)


async def load(url: str, job_ids: list[str], n_streams: int, rate: float, seconds: float) -> tuple[list[float], int]:
    """Latencies in ms, and how many lines the streams got."""
    limits = httpx.Limits(max_connections=None)
    lines, took = 0, list[float]()
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:

        async def follow(job_id: str) -> None:
            nonlocal lines
            async with client.stream("GET", f"/v1/jobs/{job_id}/events?stream=true") as answer:
                async for _ in answer.aiter_lines():
                    lines += 1

        async def ask(job_id: str) -> None:
            began = time.perf_counter()
            (await client.get(f"/v1/jobs/{job_id}")).raise_for_status()
            took.append(1000 * (time.perf_counter() - began))

        following = [asyncio.create_task(follow(job_ids[n % len(job_ids)])) for n in range(n_streams)]
        await asyncio.sleep(5)
        began, asking = time.perf_counter(), list[asyncio.Task[None]]()
        for n in range(round(rate * seconds)):
            await asyncio.sleep(max(0, began + n / rate - time.perf_counter()))
            asking.append(asyncio.create_task(ask(job_ids[n % len(job_ids)])))
        await asyncio.gather(*asking)
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
    return took, lines


def cpu_s(pid: int) -> float:
    """CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--rate", type=float, default=50)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--core", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{folder}/service.db")
        migrate(database)
        store, over = JobStore(database), threading.Event()
        job_ids = [store.submit(SPEC)[0].id for _ in range(given.streams)]
        process, url = started(Path(folder), "taskset", "-c", str(given.core))
        threading.Thread(target=report, args=(database, job_ids[::20], over), daemon=True).start()
        try:
            before, began = cpu_s(process.pid), time.perf_counter()
            took, lines = asyncio.run(load(url, job_ids, given.streams, given.rate, given.seconds))
            used = (cpu_s(process.pid) - before) / (time.perf_counter() - began)
        finally:
            over.set()
            process.terminate()
            process.wait()
    p50, p99 = np.percentile(took, [50, 99])
    print(f"{given.streams} streams ({lines} lines), {given.rate:g} GETs a second: p50 {p50:.0f} ms, p99 {p99:.0f} ms, "  # noqa: T201
          f"max {max(took):.0f} ms; the API used {used:.0%} of its core")  # fmt: skip


if __name__ == "__main__":
    main()
