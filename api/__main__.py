"""Starts the API: `python -m api --host HOST --port PORT`; everything else comes from the settings."""

import argparse
import ipaddress
import logging
import sys

import uvicorn

from api.app import create_app
from sae_service.errors import SAEServiceError
from sae_service.settings import Settings


def main() -> None:
    """Serves until it is stopped."""
    parser = argparse.ArgumentParser(prog="python -m api", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    settings = Settings()
    if not is_loopback(arguments.host) and not settings.api_key_sha256:
        sys.exit(
            f"--host {arguments.host} can be reached from outside, so an API key is required: set "
            'SAE_SERVICE_API_KEY_SHA256=\'["<sha256 of the key>"]\' or use --host 127.0.0.1.'
        )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    try:
        app = create_app(settings)
    except SAEServiceError as error:
        sys.exit(str(error))
    uvicorn.run(app, host=arguments.host, port=arguments.port, log_level="warning", timeout_graceful_shutdown=3)


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
