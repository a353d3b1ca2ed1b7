"""What each process of the service does first."""

import logging

from sae_service import logs, settings, tracing
from sae_service.errors import InvalidSetting
from sae_service.settings import Settings


def start(log: logging.Logger, process: str) -> Settings:
    """Reads the settings, makes the data folder, logs and traces from here on, and says which variables are no settings.

    Raises InvalidSetting.
    """
    found = settings.load()
    try:
        found.data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidSetting(f"SAE_SERVICE_DATA_DIR: the folder cannot be made: {error}") from error
    logs.configure(found.log_format, found.log_level)
    for sentence in settings.unknown_variables():
        log.warning("%s", sentence)
    if found.tracing:
        tracing.start(process)
    return found
