"""Several processes, on one host or on many, that train one job together: each has devices of its own.

All of them run the same program on the same values. The first one, the leader, is the only one whose files and news count.
Whatever moves values between hosts is called by all of them, in the same order. With one process nothing here costs anything.
"""

import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Float

from sae_service.errors import DataNotFound, Stopped, StorageFailure, WorkerCrashed
from sae_service.numerics import spread

HEARTBEAT_S = 30
"""A host that has been silent for so long is lost, and all others end."""
MEETING_S = 7 * 24 * 3600
"""How long hosts wait for each other at the beginning and at the end; the worker decides what is too long."""
PIECE_BYTES = 1 << 28
"""So much of an array at once is made whole on a device, on its way to the host's memory."""
SAMPLE_ROWS = 16
ROUNDINGS, LARGEST_DIFFERENCE = 10, 0.05
"""Rows that hosts have computed for themselves may differ by so many times what rounding does to a loss, and by no larger share of
their norm. Other text differs by more than their norm.
"""

STEPS_BETWEEN = 8
"""So many steps lie between two looks at whether a host is to stop."""
LONGEST_WORD = 1000
"""Bytes of an error that a host tells the others."""

Ask = Callable[[], bool]
T = TypeVar("T")


def join(coordinator: str, n_hosts: int, index: int) -> None:
    """Makes this process one of `n_hosts`, before it has touched a device. Returns when all are there.

    From then on it is ended if one of the others is lost.

    Args:
        coordinator: host:port at which the leader, which has the index 0, is reached.
    """
    jax.distributed.initialize(
        coordinator, n_hosts, index, cluster_detection_method="deactivate", initialization_timeout=MEETING_S,
        heartbeat_timeout_seconds=HEARTBEAT_S, shutdown_timeout_seconds=MEETING_S,
    )  # fmt: skip
    # Now, while nobody is busy: who is called for the first time must answer within half a minute.
    from_all(np.zeros(1, np.int32))


def leave() -> None:
    """Waits until all hosts have come to this point; from then on none is missed."""
    jax.distributed.shutdown()


def count() -> int:
    """How many there are."""
    return jax.process_count()


def leads() -> bool:
    """Whether this one is the leader."""
    return jax.process_index() == 0


def from_all(values: np.ndarray) -> np.ndarray:
    """The values that each host has given, the leader's first. All give the same shape and dtype."""
    devices = jax.devices()
    mesh = Mesh(np.array(devices), ("devices",))
    each = NamedSharding(mesh, PartitionSpec("devices"))
    placed = jax.make_array_from_callback((len(devices), *values.shape), each, lambda _: values[None])
    owners = [device.process_index for device in devices]
    return np.asarray(jax.device_put(placed, NamedSharding(mesh, PartitionSpec())))[[owners.index(at) for at in range(count())]]


def from_leader(message: bytes) -> bytes:
    """What the leader says; what the others say is not heard."""
    length = int(from_all(np.array(len(message), np.int32))[0])
    return from_all(np.frombuffer(message[:length].ljust(length), np.uint8))[0].tobytes()


def agreed(find: Callable[[], T]) -> T:
    """What the leader finds, which JSON can hold; the others do not look."""
    return find() if count() == 1 else json.loads(from_leader(json.dumps(find() if leads() else None).encode()))


def any_of(ask: Ask, every: int = 1) -> Ask:
    """`ask`, with yes for an answer if it is that of any host. Between every so many calls the hosts do not ask each other,
    and the answer is no.
    """
    if count() == 1:
        return ask
    n_calls = 0

    def asked() -> bool:
        nonlocal n_calls
        n_calls += 1
        return n_calls % every == 0 and bool(from_all(np.array(ask(), np.int32)).any())

    return asked


def of_leader(ask: Ask, every: int = 1) -> Ask:
    """`ask`, with the leader's answer. See `any_of`."""
    return any_of(lambda: leads() and ask(), every)


def if_alone(ask: Ask) -> Ask:
    """`ask` of one host alone; several, where they cannot ask each other, go on."""
    return ask if count() == 1 else lambda: False


def until_any_stops(items: Iterator[T], should_stop: Ask) -> Iterator[T]:
    """The items, until any host should stop; one that does may have come to an early end of its own."""
    if count() == 1:
        yield from items
        return
    is_over = any_of(should_stop)
    for item in items:
        if is_over():
            return
        yield item
    is_over()


class Meeting(AbstractContextManager[Any]):
    """Where hosts come together before they train: what is wrong with one of them, all end with."""

    def __init__(self) -> None:
        self._is_over = count() == 1

    def hold(self, values: Any) -> None:
        """Goes on when all hosts are here.

        Args:
            values: what a checkpoint holds beside its arrays, or the beginning.

        Raises:
            WorkerCrashed: another host has met with an error, which is told.
            StorageFailure: the hosts go on from different checkpoints.
        """
        if self._is_over:
            return
        said = self._said(f"from {zlib.crc32(json.dumps(values, sort_keys=True).encode())}")
        for index, word in enumerate(said):
            if not word.startswith("from "):
                raise WorkerCrashed(f"host {index} of {count()}: {word}")
        if len(set(said)) > 1:
            remedy = "Give all hosts the same SAE_SERVICE_STORAGE_URL."
            raise StorageFailure("the hosts have not read the same checkpoint", hint=remedy)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        """Tells the others, who wait, what has happened here."""
        if error is not None and not self._is_over:
            self._said(f"{type(error).__name__}: {error}")

    def _said(self, word: str) -> list[str]:
        self._is_over = True
        own = np.frombuffer(word.encode()[:LONGEST_WORD].ljust(LONGEST_WORD), np.uint8)
        return [of_one.tobytes().decode(errors="replace").rstrip() for of_one in from_all(own)]


@contextmanager
def saved_if_it_fails(save: Callable[[], None]) -> Iterator[None]:
    """Saves if what it is about fails, but for an error that may be one host's only: saving takes all of them."""
    with ExitStack() as failed:
        failed.push(lambda kind, *_: save() if kind is not None and (count() == 1 or issubclass(kind, Stopped)) else None)
        yield


def put(array: Any, sharding: Sharding | None) -> Array:
    """The array at its place, which may be on several hosts: each of them has the array and brings its part."""
    is_everywhere = isinstance(array, Array) and not array.is_fully_addressable
    if sharding is None or sharding.is_fully_addressable or is_everywhere:
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def fetched(tree: Any) -> Any:
    """The arrays of a tree, whole, in each host's memory, one after the other."""
    return jax.device_get(tree) if count() == 1 else jax.tree.map(_whole, tree)


def _whole(leaf: Any) -> np.ndarray:
    is_here = not isinstance(leaf, Array) or leaf.is_fully_addressable or leaf.is_fully_replicated
    return np.asarray(leaf) if is_here else gathered(leaf)


def gathered(array: Array, piece_bytes: int = PIECE_BYTES) -> np.ndarray:
    """An array that is split along one axis, whole and exact in each host's memory. A device has so many bytes more meanwhile."""
    sharding = array.sharding
    assert isinstance(sharding, NamedSharding)
    axis = next(axis for axis, name in enumerate(sharding.spec) if name is not None)
    n_devices = sharding.mesh.size
    length = array.shape[axis] // n_devices
    n_rows = min(length, max(1, piece_bytes * length // array.nbytes))
    whole = np.empty(array.shape, array.dtype)
    parts = np.moveaxis(whole, axis, 0).reshape(n_devices, length, *np.delete(array.shape, axis))
    for first in range(0, length, n_rows):
        # The last piece may begin within the one before it: all have one shape.
        start = min(first, length - n_rows)
        parts[:, start : start + n_rows] = _piece(sharding, axis, n_rows, array, np.int32(start))
    return whole


@partial(jax.jit, static_argnums=(0, 1, 2))
def _piece(sharding: NamedSharding, axis: int, n_rows: int, array: Array, start: Array) -> Array:
    """Some rows of each device's part of an array that is split along an axis, [devices, rows, ...], on every device."""
    (name,) = sharding.mesh.axis_names

    def own(part: Array, start: Array) -> Array:
        taken = jax.lax.dynamic_slice_in_dim(part, start, n_rows, axis)
        return jax.lax.all_gather(jnp.moveaxis(taken, axis, 0), name)

    specs = sharding.spec, PartitionSpec()
    return jax.shard_map(own, mesh=sharding.mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)(array, start)


def check_rows(rows: dict[str, Float[Array, "rows width"]], tolerance: float) -> None:
    """Raises DataNotFound if the hosts have read other rows than the leader.

    Args:
        rows: by hook point.
        tolerance: the relative difference of losses that rounding alone may make.
    """
    largest = min(ROUNDINGS * tolerance, LARGEST_DIFFERENCE)
    for name, found in rows.items() if count() > 1 else ():
        ours = from_all(np.asarray(spread(found, SAMPLE_ROWS)[:SAMPLE_ROWS], np.float32))
        difference = np.linalg.norm((ours - ours[0]).reshape(count(), -1), axis=1)
        others = np.flatnonzero(difference > largest * np.linalg.norm(ours[0]))
        if len(others):
            raise DataNotFound(
                f"host {others[0]} has read other activations at {name} than host 0.",
                hint="Give all hosts the same model and text, under the same paths, the same devices and the same versions.",
            )
