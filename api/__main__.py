"""Starts the API: `python -m api --host HOST --port PORT`; everything else comes from the settings."""

import argparse
import ipaddress
import logging
import sys

from api.app import create_app
from api.server import serve
from sae_service.errors import SAEServiceError
from sae_service.jobs.database import Database
from sae_service.jobs.keys import Keys
from sae_service.jobs.migration import migrate
from sae_service.settings import Settings
from sae_service.startup import start
from sae_service.storage.objects import Storage

log = logging.getLogger("api")


def main() -> None:
    """Serves until it is stopped. What it cannot start without is one line, and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m api", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    try:
        settings = start(log, "api")
        _reach(settings)
        if not is_loopback(arguments.host) and not has_key(settings):
            sys.exit(
                f"api: --host {arguments.host} can be reached from outside, so an API key is required: make one with "
                "`sae-service keys create NAME --scopes read,submit,manage`, set SAE_SERVICE_API_KEY_SHA256="
                "'[\"<sha256 of the key>\"]', or use --host 127.0.0.1."
            )
        app = create_app(settings)
    except SAEServiceError as error:
        sys.exit(f"api: {error}")
    serve(app, arguments.host, arguments.port)


def has_key(settings: Settings) -> bool:
    """Whether anybody holds a key that the service accepts."""
    return bool(settings.api_key_sha256) or any(key.is_valid for key in Keys.at(settings.resolved_database_url()).all())


def _reach(settings: Settings) -> None:
    """Raises ServiceUnavailable or StorageFailure if the database or the storage does not answer."""
    migrate(Database(settings.resolved_database_url()))
    # Whether there is such a thing does not matter.
    Storage(settings.resolved_storage_url()).has_published("start")


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
