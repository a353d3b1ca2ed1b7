"""The whole way from text to training batches, one fill ahead on a thread of its own."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sae_service import tracing
from sae_service.activations.buffer import FillStart, permutation
from sae_service.activations.source import Harvest
from sae_service.schema import Frozen
from sae_service.spec import StreamSpec


class StreamPosition(Frozen):
    """Everything that the stream must remember: which fill, where it began, how many batches it has served, and how
    many came before it. After the last batch of a fill it is the beginning of the next one, and a fill that has begun
    keeps its number of batches, so that a job that goes on with another length neither repeats rows nor leaves any out.
    """

    fill_index: int = 0
    fill_start: FillStart = FillStart()
    steps_before: int = 0
    batches_served: int = 0
    n_batches: int = 0


@dataclass(frozen=True)
class Fill:
    """The shuffled rows of one fill, by hook point, where it starts, and where the next one does."""

    rows: dict[str, Float[Array, "rows d_in"]]
    order: Array
    start: StreamPosition
    following: StreamPosition


@partial(jax.jit, static_argnums=3)
def _take(rows: Array, order: Array, start: Array | int, n_rows: int) -> Array:
    """The rows that a batch has in an order."""
    return jnp.take(rows, jax.lax.dynamic_slice(order, (start,), (n_rows,)), axis=0)


@dataclass
class Waits:
    """Seconds that training has waited for rows, and reading for training, since the first fill was there."""

    training_s: float = 0.0
    reading_s: float = 0.0

    def said(self, trained_s: float) -> str:
        """Both in words, of so many seconds of training."""
        share = self.training_s / max(trained_s, self.training_s, 1e-9)
        training = f"Training waited {self.training_s:.2f} s for rows, {share:.2%} of its time"
        return f"{training}; reading waited {self.reading_s:.2f} s for training."


class ActivationStream:
    """Batches of rows for every hook point, in the same order for all of them.

    Attributes:
        waits: which side was the slower one.
    """

    def __init__(
        self, spec: StreamSpec, harvest: Harvest, position: StreamPosition, alive: Callable[[], None] = lambda: None,
        row_bytes: int = 4,
    ) -> None:  # fmt: skip
        """Starts reading ahead; `harvest` must start where `position` says. Calls `alive` before each of its pieces.

        Args:
            row_bytes: of one row of every hook point.
        """
        self._steps_in_fill = spec.steps_in_fill(row_bytes)
        self.spec, self._alive = spec, alive
        self._harvest: Harvest | None = harvest
        self.waits, self._read_at = Waits(), math.inf
        self._closed = threading.Event()
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="harvest")
        self._next = self._read_ahead(position)

    def _read_ahead(self, position: StreamPosition) -> Future[Fill] | None:
        """The fill that begins at a position, as soon as it has been read, or None after the last one."""
        if position.steps_before >= self.spec.n_steps:
            return None
        return self._reader.submit(self._fill, position)

    @tracing.traced("fill")
    def _fill(self, position: StreamPosition) -> Fill:
        # Both the rows and their order depend on how many there are.
        n_batches = position.n_batches or self._batches_of(self.spec.n_steps - position.steps_before)
        assert self._harvest is not None
        rows, fill_start = self._harvest.fill(n_batches * self.spec.batch, self._ends_here)
        order = permutation(self.spec.seed, position.fill_index, n_batches * self.spec.batch)
        following = StreamPosition(
            fill_index=position.fill_index + 1,
            fill_start=fill_start,
            steps_before=position.steps_before + n_batches,
        )
        self._read_at = time.monotonic()
        return Fill(rows, order, position.model_copy(update={"n_batches": n_batches}), following)

    def _batches_of(self, left: int) -> int:
        """How many batches the next fill has, of so many that are left. The last two are alike: a fill stands for the text."""
        return min(self._steps_in_fill, left if left <= self._steps_in_fill else -(-left // 2))

    def _ends_here(self) -> bool:
        self._alive()
        return self._closed.is_set()

    def fills(self, should_stop: Callable[[], bool] = lambda: False) -> Iterator[Fill]:
        """The fills from the position on, to the last one, or until it should stop while one is waited for."""
        asked: float | None = None
        while self._next is not None:
            if wait([self._next], timeout=0.5).done:
                fill = self._next.result()
                if asked is not None:
                    self.waits.training_s += max(0.0, self._read_at - asked)
                    self.waits.reading_s += max(0.0, asked - self._read_at)
                self._next = self._read_ahead(fill.following)
                yield fill
                asked = time.monotonic()
            elif should_stop():
                return

    def batches(self, fill: Fill) -> Iterator[tuple[dict[str, Float[Array, "batch d_in"]], StreamPosition]]:
        """The batches of a fill that are still to be served, each with the position after it."""
        batch, n_batches = self.spec.batch, fill.start.n_batches
        for index in range(fill.start.batches_served, min(n_batches, self.spec.n_steps - fill.start.steps_before)):
            after = fill.start.model_copy(update={"batches_served": index + 1}) if index + 1 < n_batches else fill.following
            yield {name: _take(rows, fill.order, index * batch, batch) for name, rows in fill.rows.items()}, after

    def sample(self, fill: Fill) -> Iterator[dict[str, Float[Array, "batch d_in"]]]:
        """The first batches of a fill, served already or not: a random sample of it, which depends on nothing else."""
        batch = self.spec.batch
        for index in range(min(fill.start.n_batches, self.spec.steps_in_sample)):
            yield {name: _take(rows, fill.order, index * batch, batch) for name, rows in fill.rows.items()}

    def close(self) -> None:
        """Stops reading ahead, waits for the forward pass in flight, and lets go of what was read."""
        self._closed.set()
        self._reader.shutdown()
        self._harvest = self._next = None
