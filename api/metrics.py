"""Prometheus: what this process has done, and what the database knows of the whole service."""

import threading
import time
from collections.abc import Iterator

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sae_service.errors import ServiceUnavailable
from sae_service.jobs.census import Census, census
from sae_service.jobs.database import Database

router = APIRouter(tags=["health"])
REQUESTS = Histogram(
    "sae_http_request_seconds", "Requests, by how long they took to their last byte.", ["route", "method", "status"],
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
)  # fmt: skip
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
CACHED_S = 10.0


def observe(route: str, method: str, status: int | None, seconds: float) -> None:
    """Counts one request; a client may call a method what it likes, but each name is kept for ever."""
    REQUESTS.labels(route, method if method in METHODS else "other", str(status or "gone")).observe(seconds)


class Service(Collector):
    """The service's figures, counted anew every CACHED_S seconds at the most, however many ask."""

    def __init__(self, database: Database, lease_s: float) -> None:
        self._database, self._lease_s = database, lease_s
        self._counting = threading.Lock()
        self._counted: tuple[float, Census | None] | None = None

    def _census(self) -> Census | None:
        with self._counting:
            if self._counted is None or time.monotonic() - self._counted[0] > CACHED_S:
                try:
                    found = census(self._database, self._lease_s)
                except ServiceUnavailable:
                    found = None
                self._counted = time.monotonic(), found
            return self._counted[1]

    def collect(self) -> Iterator[Metric]:
        """All of them; without a database only that it is away."""
        found = self._census()
        yield _gauge("sae_database_up", "Whether the database answers.", float(found is not None))
        if found is None:
            return
        yield _by("sae_jobs", "Jobs that have not ended.", "status", found.jobs)
        yield _gauge("sae_oldest_queued_job_seconds", "Time since the oldest queued job was submitted.", found.oldest_queued_s)
        yield _by("sae_workers", "Workers that are there.", "queue", found.workers)
        yield _gauge("sae_tokens_per_second", "Rows of activations that all jobs are trained on in a second.", found.tokens_per_s)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _by(name: str, text: str, label: str, values: dict[str, int]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def registry(database: Database, lease_s: float) -> CollectorRegistry:
    """The registry of one application."""
    found = CollectorRegistry()
    found.register(Service(database, lease_s))
    return found


@router.get("/metrics", include_in_schema=False)
def metrics(request: Request) -> Response:
    """Everything, in Prometheus's text form."""
    text = generate_latest(REGISTRY) + generate_latest(request.app.state.registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
