"""Starts the API: `python -m api --host HOST --port PORT`; everything else comes from the settings."""

import argparse
import ipaddress
import logging
import sys

from api.app import create_app
from api.server import serve
from sae_service.errors import SAEServiceError
from sae_service.schema import DEFAULT_PORT
from sae_service.startup import start

log = logging.getLogger("api")


def main() -> None:
    """Serves until it is stopped. What it cannot start without is one line, and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m api", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)
    arguments = parser.parse_args()
    try:
        settings = start(log, "api")
        app = create_app(settings)
        if not (is_loopback(arguments.host) or settings.api_key_sha256 or app.state.keys.has_valid()):
            sys.exit(
                f"api: --host {arguments.host} can be reached from outside, so an API key is required: make one with "
                "`sae-service keys create NAME --scopes read,submit,manage`, set SAE_SERVICE_API_KEY_SHA256="
                "'[\"<sha256 of the key>\"]', or use --host 127.0.0.1."
            )
    except SAEServiceError as error:
        sys.exit(f"api: {error}")
    serve(app, arguments.host, arguments.port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


if __name__ == "__main__":
    main()
