"""Checkpoints written while training goes on: only the copy of the state holds it up."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np

from sae_service import hosts

SOONEST_S, LATEST_S, LARGEST_SHARE = 120.0, 600.0, 0.02


def snapshot(state: Any) -> Any:
    """A copy of a pytree in the host's memory; the next step may reuse the original's."""
    return jax.tree.map(lambda leaf: np.array(leaf, copy=True), hosts.fetched(state))


def on_host() -> AbstractContextManager[Any]:
    """JAX computes on the CPU meanwhile, unless it has been told to know none."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return nullcontext()


class CheckpointWriter:
    """Writes one checkpoint at a time on a thread of its own.

    Attributes:
        waited_s: how long training has waited for it.
        took_s: how long the last checkpoint took, its copy included.
    """

    def __init__(self) -> None:
        self.waited_s, self.took_s = 0.0, 0.0
        self._began = time.monotonic()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[Any] | None = None

    def write(self, prepare: Callable[[], Callable[[], Any]]) -> None:
        """Calls `prepare` now and what it returns on the thread, once the one before is done, whose error it raises."""
        self._join()
        self._began = time.monotonic()
        self._pending = self._executor.submit(self._timed, prepare(), self._began)
        self.waited_s += time.monotonic() - self._began

    def _timed(self, publish: Callable[[], Any], began: float) -> None:
        publish()
        self.took_s = time.monotonic() - began

    def said(self, trained_s: float) -> list[str]:
        """How long training has waited, in words; nothing if it has not.

        Args:
            trained_s: how long it took in all.
        """
        if not self.waited_s:
            return []
        share = self.waited_s / max(trained_s, self.waited_s)
        return [f"Training waited {self.waited_s:.2f} s for checkpoints, {share:.2%} of its time."]

    def is_due(self) -> bool:
        """Whether the clock asks for the next one: after two minutes, or later if writing would take more than 2 % of the
        time, but after ten minutes at the latest.
        """
        wait = min(max(SOONEST_S, self.took_s / LARGEST_SHARE), LATEST_S)
        return time.monotonic() - self._began >= wait

    def check(self) -> None:
        """Raises the error of a write that has failed, so that no steps are taken that cannot be saved. Never waits."""
        if self._pending is not None and self._pending.done():
            self._join()

    def finish(self) -> None:
        """Waits for what is being written, and raises its error."""
        self._join()

    def close(self) -> None:
        """Waits for what is being written; its error is not raised, because another one is on its way."""
        self._executor.shutdown()

    def _join(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            began = time.monotonic()
            try:
                pending.result()
            finally:
                self.waited_s += time.monotonic() - began
