"""The whole service on one machine: the API and its workers, started together and stopped together.

`python -m workers.serve --host HOST --port PORT --workers N`; everything else comes from the settings.
"""

import argparse
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from sae_service.errors import InvalidSetting
from sae_service.schema import DEFAULT_PORT
from sae_service.settings import Settings
from sae_service.startup import start
from workers.ending import SERVICE_EXTRA_S, die_with_parent, set_on_stop_signals

log = logging.getLogger("serve")
RESTART_PAUSE_S = 2.0


def main() -> None:
    """Serves until SIGINT or SIGTERM. Exits with the API's status if that ends by itself."""
    parser = argparse.ArgumentParser(prog="python -m workers.serve", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--devices", help="CUDA_VISIBLE_DEVICES for each worker, separated by semicolons")
    arguments = parser.parse_args()
    try:
        settings = start(log, "serve")
    except InvalidSetting as error:
        sys.exit(f"serve: {error}")
    _check_port(arguments.host, arguments.port)
    stop = threading.Event()
    set_on_stop_signals(stop)
    devices = arguments.devices.split(";") if arguments.devices else [None] * arguments.workers
    if settings.hosts > 1 and len(devices) > 1:
        sys.exit("serve: SAE_SERVICE_HOSTS: one worker of a host can train with the others: give it all GPUs, --devices '0,1,2,3'.")
    api = _start("api", "--host", arguments.host, "--port", str(arguments.port))
    workers = [_start("workers", *_worker(settings, index, device)) for index, device in enumerate(devices)]
    threading.Thread(target=_greet, args=(settings, api, arguments.host, arguments.port), daemon=True).start()
    sys.exit(_watch(stop, api, workers, settings.stop_s + SERVICE_EXTRA_S))


def _check_port(host: str, port: int) -> None:
    """Ends the process if nothing can listen there: before workers start, and before another's answer is taken for ours."""
    try:
        (family, kind, _, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        sys.exit(f"serve: cannot listen on {host} port {port}: {error.strerror}. Name another one with --port.")


def _worker(settings: Settings, index: int, device: str | None) -> list[str]:
    port = settings.worker_metrics_port
    ports = [] if port is None else ["--metrics-port", str(port + index)]
    return ports if device is None else [*ports, "--device", device]


def _greet(settings: Settings, api: subprocess.Popen[bytes], host: str, port: int) -> None:
    """Once the API listens."""
    while api.poll() is None:
        with suppress(OSError), socket.create_connection((host, port), timeout=1):
            break
        time.sleep(RESTART_PAUSE_S / 10)
    else:
        return
    url, where = f"http://{host}:{port}", settings.data_dir.resolve()
    log.info("the service is at %s, its data in %s; Ctrl-C stops it; running jobs are saved", url, where)
    log.info("next: sae-service submit job.yaml; API reference: %s/docs", url)


def _start(module: str, *arguments: str) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C reaches only this process, which then stops the others in order.
    return _started([sys.executable, "-m", module, *arguments])


def _started(command: Any) -> subprocess.Popen[bytes]:
    server = os.getpid()

    def stop_with_server() -> None:
        # If this process is killed, the others save their jobs and stop: nobody else would ever stop them.
        if not die_with_parent(server, signal.SIGTERM):
            os._exit(1)

    return subprocess.Popen(command, start_new_session=True, preexec_fn=stop_with_server)


def _watch(
    stop: threading.Event, api: subprocess.Popen[bytes], workers: list[subprocess.Popen[bytes]], wait_s: float
) -> int:
    """Replaces workers that die, until it is told to stop or the API ends. Returns the exit status."""
    while not stop.wait(0.2) and api.poll() is None:
        for index, worker in enumerate(workers):
            if worker.poll() is not None:
                log.warning("worker process %d ended with status %s; starting another", worker.pid, worker.returncode)
                if stop.wait(RESTART_PAUSE_S):
                    break
                workers[index] = _started(worker.args)
    if stop.is_set():
        log.info("stopping: running jobs are saved first")
    _end([*workers, api], wait_s)
    return 0 if stop.is_set() else api.returncode or 1


def _end(processes: list[subprocess.Popen[bytes]], wait_s: float) -> None:
    before = time.monotonic() + wait_s
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(max(0.1, before - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


if __name__ == "__main__":
    main()
