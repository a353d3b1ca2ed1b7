"""A network that loses packets without a word, with a worker in a network namespace of its own."""

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults import invariants
from tests.faults.following import Following
from tests.faults.history import History
from tests.faults.proxy import Proxy
from tests.faults.worker import Worker
from tests.postgres import Postgres
from tests.service import Service

NEAR, FAR = "198.18.77.1", "198.18.77.2"  # from the block for tests of networks, RFC 2544


def ip(*words: str) -> None:
    """One command of iproute2."""
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def namespace() -> Iterator[str]:
    """A network namespace whose only way out is a link, of which this end has the same name."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("only root can make network namespaces, with iproute2")
    name = f"sae{secrets.token_hex(3)}"
    try:
        ip("netns", "add", name)
        ip("link", "add", name, "type", "veth", "peer", "name", "out", "netns", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"cannot make a network namespace here: {error.stderr}")
    ip("addr", "add", f"{NEAR}/30", "dev", name)
    ip("link", "set", name, "up")
    ip("-n", name, "addr", "add", f"{FAR}/30", "dev", "out")
    for device in ("lo", "out"):
        ip("-n", name, "link", "set", device, "up")
    yield name
    ip("link", "del", name)
    ip("netns", "del", name)


@pytest.mark.faults
def test_a_worker_notices_that_the_other_end_has_forgotten_its_connections(
    namespace: str, postgres: Postgres, history: History, quick: dict[str, Any], tmp_path: Path, compiled: dict[str, str]
) -> None:
    proxy = Proxy(postgres.port, NEAR)
    shared = compiled | {"SAE_SERVICE_STORAGE_URL": (tmp_path / "shared").as_uri()}
    service = Service(tmp_path, 0, SAE_SERVICE_DATABASE_URL=postgres.url, **shared)
    through = postgres.url.replace(f"127.0.0.1:{postgres.port}", f"{NEAR}:{proxy.port}")
    within = ("ip", "netns", "exec", namespace)
    far = Worker(tmp_path / "far", within, **shared | {"SAE_SERVICE_DATABASE_URL": through})
    try:
        job = service.started(quick)
        following = Following(service, job, quick)
        # Questions arrive and are acknowledged, answers do not come; then the far end goes without its goodbye arriving.
        proxy.silence()
        time.sleep(3)
        ip("link", "set", namespace, "down")
        proxy.heal(forget=True)
        time.sleep(1)
        ip("link", "set", namespace, "up")
        history.add("forgotten")
        service.until(lambda: following.look() or following.job.is_terminal)
        history.add("ended", status=following.job.status, attempts=following.n_attempts)
        assert following.job.status == "succeeded"
        invariants.check(service, following.job, quick, following.events)
    finally:
        far.close()
        service.interrupt()
        proxy.close()
