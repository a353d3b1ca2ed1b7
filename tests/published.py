"""What is in a storage, read as the service reads it."""

from sae_service.storage.objects import Storage


def published(storage: Storage, key: str, below: str = "") -> dict[str, bytes]:
    """The files of a published set by path, each checked against the manifest; those whose path starts with `below`."""
    return storage.read(key, {path: sha256 for path, sha256 in storage.hashes(key).items() if path.startswith(below)})
