"""HTTP/1.1 by uvicorn, with an end to requests that never become whole."""

import asyncio
import resource
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from uvicorn.protocols.http.h11_impl import H11Protocol

from api.problems import MEDIA_TYPE, document
from api.requests import complete, new_request_id

REQUEST_S = 30.0
"""Seconds in which a request has arrived as a whole, from its first byte or from the connection's beginning."""
STOP_S = 3
NEVER_MANY = 1 << 16


class Protocol(H11Protocol):
    """One connection. Those that send half a request are ended, and there are never more than the process can hold."""

    _overdue: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Waits for the first request."""
        super().connection_made(transport)
        if len(self.connections) > most_connections():
            transport.abort()
        else:
            self._expect()

    def data_received(self, data: bytes) -> None:
        """Goes on waiting until the request is whole; each byte that comes buys no more time."""
        super().data_received(data)
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._expect()
        else:
            self._expect_nothing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits no more."""
        self._expect_nothing()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Says what was wrong with what is no HTTP, as all other errors are said."""
        self._refuse(400, "bad_request", msg)

    def _expect(self) -> None:
        if self._overdue is None:
            self._overdue = self.loop.call_later(REQUEST_S, self._give_up)

    def _expect_nothing(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None

    def _give_up(self) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(408, "request_timeout", f"The request was not whole within {REQUEST_S:g} seconds.")
        else:
            self.transport.close()

    def _refuse(self, status: int, code: str, detail: str) -> None:
        request_id = new_request_id()
        body = document(status, code, detail, "", request_id).model_dump_json().encode()
        headers = MutableHeaders({"Content-Type": MEDIA_TYPE, "Content-Length": str(len(body)), "Connection": "close"})
        complete(headers, request_id)
        for event in (h11.Response(status_code=status, headers=headers.raw), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def most_connections() -> int:
    """Half of the files that the process may have open: the others are for the database and for what is downloaded."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return NEVER_MANY if limit == resource.RLIM_INFINITY else limit // 2


def serve(app: FastAPI, host: str, port: int) -> None:
    """Serves until the process is told to stop."""
    options: dict[str, Any] = {"http": Protocol, "ws": "none", "server_header": False}
    # Its lines are ours: it configures no log of its own, and access_log.py tells of the requests.
    options |= {"log_config": None, "log_level": "warning", "access_log": False}
    uvicorn.run(app, host=host, port=port, timeout_graceful_shutdown=STOP_S, **options)
