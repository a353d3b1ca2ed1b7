"""The whole way from text to training batches, one fill ahead on a thread of its own."""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sae_service.activations.buffer import FillStart, permutation
from sae_service.activations.source import Harvest
from sae_service.schema import Frozen
from sae_service.spec import StreamSpec


class StreamPosition(Frozen):
    """Everything that the stream must remember: which fill, where it began, and how many batches it has served."""

    fill_index: int = 0
    fill_start: FillStart = FillStart()
    batches_served: int = 0


@dataclass(frozen=True)
class Fill:
    """The shuffled rows of one fill, by hook point, and where it and the next one start."""

    index: int
    rows: dict[str, Float[Array, "rows d_in"]]
    order: Array
    start: FillStart


_take = jax.jit(lambda rows, order: jnp.take(rows, order, axis=0))


class ActivationStream:
    """Batches of rows for every hook point, in the same order for all of them."""

    def __init__(self, spec: StreamSpec, harvest: Harvest, position: StreamPosition) -> None:
        """Starts reading ahead; `harvest` must start where `position` says."""
        self.spec, self.position, self._harvest = spec, position, harvest
        self._filled: queue.Queue[Fill | BaseException] = queue.Queue(maxsize=1)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fill_ahead, name="harvest", daemon=True)
        self._thread.start()

    def _fill_ahead(self) -> None:
        start, index = self.position.fill_start, self.position.fill_index
        steps = self.spec.steps_per_fill
        try:
            while index * steps < self.spec.n_steps and not self._closed.is_set():
                n_rows = min(steps, self.spec.n_steps - index * steps) * self.spec.batch
                rows, following = self._harvest.fill(n_rows)
                order = jnp.asarray(permutation(self.spec.seed, index, n_rows))
                self._put(Fill(index, rows, order, start))
                start, index = following, index + 1
        except BaseException as error:  # noqa: BLE001  carried to the thread that waits for the fill
            self._put(error)

    def _put(self, item: Fill | BaseException) -> None:
        while not self._closed.is_set():
            try:
                self._filled.put(item, timeout=0.2)
            except queue.Full:
                continue
            return

    def fills(self) -> Iterator[Fill]:
        """The fills from the position on."""
        steps = self.spec.steps_per_fill
        for _ in range(self.position.fill_index, -(-self.spec.n_steps // steps)):
            item = self._filled.get()
            if isinstance(item, BaseException):
                raise item
            yield item

    def batches(self, fill: Fill) -> Iterator[tuple[dict[str, Float[Array, "batch d_in"]], StreamPosition]]:
        """The batches of a fill that are still to be served, each with the position after it."""
        batch = self.spec.batch
        first = self.position.batches_served if fill.index == self.position.fill_index else 0
        for index in range(first, len(fill.order) // batch):
            order = fill.order[index * batch : (index + 1) * batch]
            after = StreamPosition(fill_index=fill.index, fill_start=fill.start, batches_served=index + 1)
            yield {name: _take(rows, order) for name, rows in fill.rows.items()}, after

    def close(self) -> None:
        """Stops reading ahead and waits for the forward pass in flight."""
        self._closed.set()
        while not self._filled.empty():
            self._filled.get_nowait()
        self._thread.join()
