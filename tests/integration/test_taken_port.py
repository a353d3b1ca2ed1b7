"""A service that cannot listen says so before it starts anything."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def test_a_taken_port_is_named_and_no_other_service_is_taken_for_ours(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        environment = os.environ | {"SAE_SERVICE_DATA_DIR": str(tmp_path)}
        command = [sys.executable, "-m", "workers.serve", "--port", port]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert f"cannot listen on 127.0.0.1 port {port}" in ended.stderr
    assert "the service is at" not in ended.stderr
