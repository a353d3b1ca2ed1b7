"""A service in this process, without a worker, at a port of its own."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from api.app import create_app
from sae_service.settings import Settings


@contextmanager
def served(settings: Settings, **options: Any) -> Iterator[str]:
    """The address, `host:port`, of a service with these settings, and with these options of uvicorn's."""
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=0, **{"log_level": "error"} | options))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        yield f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
