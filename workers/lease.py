"""The right to work on a job, renewed on a thread of its own so that no long step can delay it."""

import threading
import time
from collections.abc import Callable

from sae_service.errors import DatabaseFailure, LeaseLost, ServiceUnavailable
from sae_service.jobs.attempts import Attempt


class Lease:
    """Shows signs of life for an attempt, and tells when it may no longer be ours.

    A lease that cannot be renewed is a lease that is lost: it counts as expired after half its time, while another
    worker may take over only after the whole of it.
    """

    def __init__(
        self, attempt: Attempt, lease_s: float, on_renewal: Callable[[], None], stopping: threading.Event
    ) -> None:
        """Begins to renew. `stopping` is set when the worker is told to stop, which is passed on."""
        self._attempt, self._lease_s, self._on_renewal, self._stopping = attempt, lease_s, on_renewal, stopping
        self._renewed = time.monotonic()
        self._over = threading.Event()
        self.status = "running"
        self.is_lost = False
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    @property
    def is_expired(self) -> bool:
        """Whether there has been no renewal for half the lease."""
        return time.monotonic() - self._renewed > self._lease_s / 2

    def renewed(self, began: float) -> None:
        """Notes that a write for the attempt that was begun at `began` has succeeded: each of them is a sign of life.

        On SQLite the renewals may wait for long where the worker's other thread writes all the time.
        """
        self._renewed = max(self._renewed, began)
        self._on_renewal()

    def _renew(self) -> None:
        while not self._over.wait(min(1.0, self._lease_s / 6)):
            began = time.monotonic()
            try:
                self.status = self._attempt.renew(self._stopping.is_set())
            except (ServiceUnavailable, DatabaseFailure):
                # Whatever it is: a lease that cannot be renewed runs out.
                continue
            except LeaseLost:
                self.is_lost = True
                return
            self.renewed(began)

    def close(self) -> None:
        """Ends the renewals."""
        self._over.set()
        self._thread.join()
