"""Work on a thread for whose end nobody waits."""

import logging
from collections.abc import Callable

from sae_service.errors import NotFound, StorageFailure

log = logging.getLogger("workers")


def logged(failure: str, work: Callable[..., object], *arguments: object) -> None:
    """Does the work; whatever it raises is logged.

    Args:
        failure: what has not been done then, in words.
    """
    try:
        work(*arguments)
    except (StorageFailure, NotFound, OSError) as error:
        log.warning("%s: %s", failure, error)
    except Exception:  # the last resort: nobody asks what became of it
        log.exception("%s", failure)
