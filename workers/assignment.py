"""What a training process is told by its worker, as far as it comes from the settings of its host."""

from typing import Any

from sae_service.settings import Settings

OF_LEADER = ("spec", "prefix", "resume_from", "begin_with", "project")
"""What only the worker on the first host knows; its training process tells those on the others."""


def of_host(settings: Settings) -> dict[str, Any]:
    """The addresses, the folders that may be read, the log's form, and the host's place among several, None for one alone."""
    several = {"coordinator": settings.coordinator, "n_hosts": settings.hosts, "index": settings.resolved_host_index()}
    return {
        # Of this machine, which opens the files; the API may have looked at others.
        "readable_roots": list(map(str, settings.readable_roots())),
        "closed_folders": list(map(str, settings.closed_folders())),
        "storage_url": settings.resolved_storage_url(),
        "cache_url": settings.resolved_cache_url(),
        "cache_bytes": settings.cache_bytes,
        "lease_s": settings.lease_s,
        "log_format": settings.log_format,
        "log_level": settings.log_level,
        "hosts": several if settings.hosts > 1 else None,
    }
