"""Servers that speak S3, on loopback: moto, which imitates it, and OpenStack Swift, which is a store of its own.

Their packages live in `.venv-faults`, which `make faults` makes: the service's own environment stays as it is.
"""

import getpass
import socket
import subprocess
import time
from pathlib import Path

import httpx
import pytest

PROGRAMS = Path(__file__).parents[2] / ".venv-faults" / "bin"
BUCKET = "saes"
START_S = 120
MAKE_BUCKET = """
import sys, boto3
endpoint, key, secret, bucket = sys.argv[1:]
session = boto3.session.Session(key, secret, region_name="us-east-1")
session.client("s3", endpoint_url=endpoint).create_bucket(Bucket=bucket)
"""
RING = """
import sys
from swift.common.ring import RingBuilder
folder, *ports = sys.argv[1:]
for name, port in zip(("account", "container", "object"), ports):
    builder = RingBuilder(4, 1, 0)
    builder.add_dev({"id": 0, "region": 1, "zone": 1, "weight": 1.0, "ip": "127.0.0.1", "port": int(port), "device": "disk"})
    builder.rebalance()
    builder.get_ring().save(f"{folder}/{name}.ring.gz")
"""
STORAGE_SERVER = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
devices = {folder}/devices
mount_check = false
user = {user}
swift_dir = {folder}
workers = 0
log_address = {folder}/no-log
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
"""
PROXY_SERVER = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
user = {user}
swift_dir = {folder}
workers = 0
log_address = {folder}/no-log
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck listing_formats s3api tempauth slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:swift#s3api
s3_acl = false
[filter:slo]
use = egg:swift#slo
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
"""
SWIFT = """
[swift-hash]
swift_hash_path_suffix = faults
swift_hash_path_prefix = faults
[storage-policy:0]
name = gold
default = yes
"""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def program(name: str) -> str:
    """The path of a server's program; skips the test without it."""
    if not (PROGRAMS / name).exists():
        pytest.skip(f"{name} is not installed: run `make faults`")
    return str(PROGRAMS / name)


class Store:
    """A running server with an empty bucket; its processes can be killed and started again."""

    key, secret = "test:tester", "testing"

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._processes: list[subprocess.Popen[bytes]] = []
        self.folder.mkdir(parents=True, exist_ok=True)
        self.commands = self.prepared()
        self.start()
        access = [self.endpoint, self.key, self.secret, BUCKET]
        subprocess.run([program("python"), "-c", MAKE_BUCKET, *access], check=True, timeout=START_S)

    def prepared(self) -> list[list[str]]:
        """Writes what the server reads. Returns the commands that start it."""
        raise NotImplementedError

    def settings(self) -> dict[str, str]:
        """The environment of a service that keeps its files here."""
        return {
            "SAE_SERVICE_STORAGE_URL": f"s3://{BUCKET}/some/prefix", "AWS_ENDPOINT_URL": self.endpoint, "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.secret, "AWS_REGION": "us-east-1",
        }  # fmt: skip

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        with (self.folder / "store.log").open("ab") as log:
            self._processes = [subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder) for command in self.commands]
        before = time.monotonic() + START_S
        while not self._answers():
            assert time.monotonic() < before, (self.folder / "store.log").read_text()[-3000:]
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            return httpx.get(self.endpoint, timeout=30).status_code < 500
        except httpx.HTTPError:
            return False

    def kill(self) -> None:
        """Ends it as a crash would."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()


class Moto(Store):
    """An imitation in memory: what it holds is gone when it is killed."""

    def prepared(self) -> list[list[str]]:
        """Nothing is read."""
        return [[program("moto_server"), "-H", "127.0.0.1", "-p", str(self.port)]]


class Swift(Store):
    """One replica on one disk, which is a folder; it outlives a kill."""

    def prepared(self) -> list[list[str]]:
        """The rings, and one file of settings for each server."""
        scripts = program("swift-proxy-server")
        ports = [free_port() for _ in range(3)]
        (self.folder / "devices" / "disk").mkdir(parents=True, exist_ok=True)
        (self.folder / "swift.conf").write_text(SWIFT)
        common = {"folder": self.folder, "user": getpass.getuser()}
        (self.folder / "proxy.conf").write_text(PROXY_SERVER.format(port=self.port, **common))
        commands = [[program("python"), scripts, str(self.folder / "proxy.conf"), "-v"]]
        for name, port in zip(("account", "container", "object"), ports, strict=True):
            settings = self.folder / f"{name}.conf"
            settings.write_text(STORAGE_SERVER.format(name=name, port=port, **common))
            commands.append([program("python"), program(f"swift-{name}-server"), str(settings), "-v"])
        arguments = [str(self.folder), *map(str, ports)]
        subprocess.run([program("python"), "-c", RING, *arguments], check=True)
        return commands
