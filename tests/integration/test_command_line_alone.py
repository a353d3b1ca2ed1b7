"""The command line without a service, before servers that are none, and before one that does not know its key."""

import http.server
import threading
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sae_service import __version__
from sae_service.cli import PANELS, app
from sae_service.settings import Settings
from tests.served import served


class Answer(http.server.BaseHTTPRequestHandler):
    """Some other web server."""

    status, content = 404, b"<html>nothing here</html>"

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.content)

    do_POST = do_GET

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (404, b"<html>nothing here</html>"), (404, b'{"detail": "Not Found"}'), (422, b'{"errors": [{"message": "no"}]}'),
        (400, b'{"code": 7}'), (200, b"hello"), (200, b'{"status": "ok"}'), (200, b"[]"), (200, b'{"data": [{"id": 1}]}'),
        (200, b'{"data": [], "has_more": true}'), (302, b""),
    ],
)  # fmt: skip
def test_another_server_is_said_to_be_no_sae_service(status: int, content: bytes, tmp_path: Path) -> None:
    kind = type("Other", (Answer,), {"status": status, "content": content})
    job = tmp_path / "job.yaml"
    job.write_text("stream: {}\n")
    with http.server.HTTPServer(("127.0.0.1", 0), kind) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        for command in (["list"], ["show", "job_" + "0" * 22], ["submit", str(job)]):
            told = CliRunner().invoke(app, [*command, "--url", url])
            assert told.exit_code == 4, (command, told.output)
            assert f"what answers at {url} is no SAE training service" in told.stderr
        server.shutdown()


@pytest.mark.parametrize("url", ["127.0.0.1:1", "http://127.0.0.1:1", "ftp://127.0.0.1", "http://["])
def test_an_address_without_a_service_is_told_with_what_to_do(url: str) -> None:
    told = CliRunner().invoke(app, ["list", "--url", url])
    assert told.exit_code in (2, 4)
    assert ".." not in told.stderr
    assert url.split("//")[-1] in told.stderr
    assert "--url" in told.stderr


def test_the_commands_are_listed_in_the_order_of_a_days_work() -> None:
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    places = [shown.index(f"│ {name} ") for commands in PANELS.values() for name in commands]
    assert places == sorted(places)


def test_the_release_is_said() -> None:
    assert CliRunner().invoke(app, ["--version"]).output == f"sae-service {__version__}\n"


def test_a_key_that_the_service_does_not_know_is_told_with_the_option_for_it(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, api_key_sha256=("0" * 64,))
    with served(settings) as address:
        told = CliRunner().invoke(app, ["list", "--url", address])
    assert (told.exit_code, "--api-key" in told.stderr) == (7, True)
