"""Files that nobody needs any more are deleted on a thread: a storage that is slow to delete holds no job up."""

from concurrent.futures import ThreadPoolExecutor, wait

from sae_service.storage.objects import Storage
from workers.errands import logged


class Deletions:
    """Deletes what is below the keys that are added, one after the other."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="deletions")

    def add(self, key: str) -> None:
        """Deletes it soon; if that fails, the log says so, and a later attempt at the job or a `Collection` finds it."""
        self._executor.submit(logged, f"cannot delete {key}", self._storage.delete, key)

    def wait(self, timeout_s: float) -> None:
        """Waits until all that has been added is deleted, or for so long."""
        wait([self._executor.submit(lambda: None)], timeout_s)
