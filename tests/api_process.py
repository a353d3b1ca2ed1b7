"""The API as a process of its own, for whatever speaks to it from outside."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx


def started(folder: Path, *before: str, **settings: str) -> tuple[subprocess.Popen[bytes], str]:
    """An API that answers, with its data and its log in `folder`, and its address. `before` is what starts its command."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*before, sys.executable, "-m", "api", "--port", str(port)]
    with (folder / "api.log").open("wb") as log:
        environment = os.environ | {"SAE_SERVICE_DATA_DIR": str(folder)} | settings
        process = subprocess.Popen(command, env=environment, stderr=log)
    url = f"http://127.0.0.1:{port}"
    for _ in range(300):
        try:
            httpx.get(f"{url}/readyz").raise_for_status()
        except httpx.HTTPError:
            time.sleep(0.2)
        else:
            return process, url
    process.kill()
    raise RuntimeError((folder / "api.log").read_text())
