"""A worker: takes jobs from one queue, one at a time, until it is told to stop; on all but the first of several hosts it follows.

`python -m workers --queue NAME --device 0`; everything else comes from the settings.
"""

import argparse
import logging
import os
import secrets
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

from prometheus_client import start_http_server

from sae_service import tracing
from sae_service.errors import InvalidSetting, SAEServiceError, ServiceUnavailable
from sae_service.jobs import migration, queue
from sae_service.jobs.collection import Collection
from sae_service.jobs.database import Database
from sae_service.jobs.lost_attempts import LostAttempts, keep_looking
from sae_service.jobs.presence import Presence
from sae_service.jobs.retention import Retention
from sae_service.jobs.store import JobStore
from sae_service.settings import Settings
from sae_service.startup import start
from sae_service.storage.objects import Storage
from workers.ending import WORKER_EXTRA_S, set_on_stop_signals
from workers.follower import follow
from workers.old_logs import OldLogs
from workers.supervisor import Supervisor

log = logging.getLogger("workers")


def main() -> None:
    """Works until SIGTERM or SIGINT; then the job in hand is saved and given back."""
    parser = argparse.ArgumentParser(prog="python -m workers", description=__doc__)
    parser.add_argument("--queue", default="default", help="the queue to take jobs from")
    parser.add_argument("--device", help="CUDA_VISIBLE_DEVICES of the training processes; jobs for the GPUs of all hosts are taken")
    parser.add_argument("--metrics-port", type=int, help="port of /metrics; default: SAE_SERVICE_WORKER_METRICS_PORT, or none")
    arguments = parser.parse_args()
    try:
        settings = start(log, "worker")
        _answer_metrics(arguments.metrics_port or settings.worker_metrics_port)
        if settings.resolved_host_index() > 0:
            follow(settings, arguments.device)
        else:
            _work(settings, arguments.queue, arguments.device)
    except SAEServiceError as error:
        sys.exit(f"worker: {error}")


def _answer_metrics(port: int | None) -> None:
    if port is not None:
        try:
            start_http_server(port)
        except OSError as error:
            raise InvalidSetting(f"SAE_SERVICE_WORKER_METRICS_PORT: port {port} cannot be listened on: {error}") from error


def _work(settings: Settings, queue_name: str, device: str | None) -> None:
    worker = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
    # Beside it DBOS has one of its own for its timers, in one worker of all.
    database = Database(settings.resolved_database_url(), kept=1, name="sae-service-worker")
    migration.migrate(database)
    supervisor = Supervisor(database, settings, worker, device)
    stop = threading.Event()
    set_on_stop_signals(stop)
    gpus = settings.hosts * (len(device.split(",")) if device else 1)
    presence = Presence(database, worker, queue_name, gpus, settings.lease_s)
    presence.renew()
    queue.take_from(database, queue_name, gpus, worker, supervisor.work)
    log.info("worker %s takes jobs from queue %s", worker, queue_name)
    lost_attempts = LostAttempts(database, settings.lease_s)
    # A storage that hangs holds up nothing else, nor the end of this process.
    threading.Thread(target=keep_looking, args=(_tidying(database, settings), settings.lease_s, stop), daemon=True).start()
    attempts = queue.Queue(database)

    def look() -> None:
        lost_attempts.look(lambda: _is_current(database, presence, stop))
        attempts.adopt(queue_name, gpus)

    keep_looking(look, settings.lease_s, stop)
    supervisor.stopping.set()
    queue.stop_taking(wait_s=settings.stop_s + WORKER_EXTRA_S)
    with suppress(ServiceUnavailable):
        presence.leave()
    log.info("worker %s has stopped", worker)
    logging.shutdown()
    tracing.finish()
    # Threads that still wait for a database that is away would keep the process; what they would write is durable.
    os._exit(0)


def _is_current(database: Database, presence: Presence, stop: threading.Event) -> bool:
    """Says that the worker is there, and whether it may look; it stops where a newer release has changed the tables."""
    presence.renew()
    if not migration.is_current(database):
        stop.set()
    return not stop.is_set()


def _tidying(database: Database, settings: Settings) -> Callable[[], None]:
    """A look at what nobody needs any more: logs, jobs that are kept no longer, files of ended jobs."""
    storage = Storage(settings.resolved_storage_url())
    logs = OldLogs(settings.data_dir / "logs", JobStore(database))
    retention = Retention(database, storage, settings.keep_days)
    collection = Collection(database, storage, settings.lease_s)

    def look() -> None:
        logs.look()
        retention.look()
        collection.look()

    return look


if __name__ == "__main__":
    main()
