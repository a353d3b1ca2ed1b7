"""Connections on which a request never becomes whole, with real sockets."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from api import server
from sae_service.settings import Settings
from tests.served import served

WHOLE = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
HEAD = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
PATIENCE_S = 20


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A service that waits one second for a request."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("service"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "REQUEST_S", 1.0)
        with served(settings, http=server.Protocol, ws="none", log_level="critical") as address:
            yield int(address.split(":")[1])


def said(port: int, *parts: bytes, pause_s: float = 0.0) -> str:
    """All that the service answers until it hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
        answer = b""
        for part in parts:
            connection.sendall(part)
            time.sleep(pause_s)
        while piece := connection.recv(1 << 16):
            answer += piece
        return answer.decode()


def ended(connection: socket.socket) -> bool:
    """Whether the service has hung up without a word."""
    try:
        connection.sendall(WHOLE)
        return connection.recv(100) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize("parts", [(), (b"GET /healthz HT",), (WHOLE[:-2],), (HEAD,), (HEAD, b"{")])
def test_a_request_that_does_not_become_whole_is_ended(port: int, parts: tuple[bytes, ...]) -> None:
    head, _, body = said(port, *parts).partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 408")
    assert json.loads(body)["code"] == "request_timeout"
    assert "x-content-type-options: nosniff" in head.lower()


def test_a_byte_now_and_then_buys_no_time(port: int) -> None:
    sent = 0
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection, suppress(ConnectionError):
        for byte in HEAD:
            connection.sendall(bytes([byte]))
            time.sleep(0.1)
            sent += 1
    assert 0 < sent < len(HEAD) / 2


def test_the_second_request_of_a_connection_must_become_whole_too(port: int) -> None:
    answers = said(port, WHOLE, WHOLE[:20], pause_s=0.3)
    assert answers.startswith("HTTP/1.1 200")
    assert "HTTP/1.1 408" in answers


def test_an_answer_may_take_as_long_as_it_takes(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
        for _ in range(3):
            connection.sendall(WHOLE)
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
            time.sleep(0.7)


def test_what_is_no_http_is_refused_with_a_problem(port: int) -> None:
    head, _, body = said(port, b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n").partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 400")
    assert json.loads(body)["request_id"] in head


def test_there_are_never_more_connections_than_the_process_can_hold(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "most_connections", lambda: 1)
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as first:
        time.sleep(0.2)
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as second:
            assert ended(second)
        first.sendall(WHOLE)
        assert first.recv(100).startswith(b"HTTP/1.1 200")
