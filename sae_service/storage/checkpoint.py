"""Any pytree of arrays, with a small JSON value beside it, to and from a storage. Restoring is exact or an error."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from sae_service import hosts
from sae_service.errors import DamagedCheckpoint, StorageFailure, WrongVersion
from sae_service.storage import arrays
from sae_service.storage.objects import Content, Storage

ARRAYS, VALUES = "state/arrays.safetensors", "state/values.json"
FORMAT = 4
FIRST_EXACT_FORMAT = 3
"""Before it, a job that was resumed twice within a group of documents went on from the beginning of the text."""


@dataclass(frozen=True)
class OnHost:
    """What is known of an array that stays in the host's memory: of a checkpoint, it is read as it was written."""

    shape: tuple[int, ...]
    dtype: Any


def to_files(state: Any, values: dict[str, Any]) -> dict[str, Content]:
    """The files of a checkpoint by path; `values` is anything that JSON holds exactly.

    The arrays are read where they are, when they are written: until then `state` may not change.
    """
    leaves = jax.tree_util.tree_leaves_with_path(state)
    named = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    return {ARRAYS: arrays.to_parts(named), VALUES: json.dumps({"format": FORMAT, **values}).encode()}


def read(storage: Storage, key: str, like: Any) -> tuple[Any, dict[str, Any]]:
    """The state and the values of the checkpoint published under `key`.

    Each array is read for itself and goes straight to its place, so the host has one of them beside the state.

    Args:
        like: a pytree with the shape, dtype and, as far as it is to be decided, sharding of each leaf; or what makes one of the
            values, where these say it.

    Raises:
        DamagedCheckpoint: something does not fit.
        WrongVersion: another release wrote it. It is as good as ever there, so nothing is to take its place.
    """
    hashes = storage.hashes(key)
    if not {ARRAYS, VALUES} <= hashes.keys():
        raise DamagedCheckpoint(f"{key} has no state")
    values = _values(storage.read(key, {VALUES: hashes[VALUES]})[VALUES])
    paths, structure = jax.tree_util.tree_flatten_with_path(like(values) if callable(like) else like)
    places = {jax.tree_util.keystr(path): leaf for path, leaf in paths}
    pieces = storage.checked(f"{key}/{ARRAYS}", hashes[ARRAYS])
    found = arrays.read(pieces, places, lambda name, array: _put(array, places[name]))
    return jax.tree_util.tree_unflatten(structure, [found[name] for name in places]), values


def read_values(storage: Storage, key: str) -> dict[str, Any]:
    """The values alone. Raises DamagedCheckpoint, or WrongVersion."""
    hashes = storage.hashes(key)
    if VALUES not in hashes:
        raise DamagedCheckpoint(f"{key} has no state")
    return _values(storage.read(key, {VALUES: hashes[VALUES]})[VALUES])


def restored(
    storage: Storage, keys: Sequence[str], begin_with: str | None, like: Any, warn: Callable[[str], None]
) -> tuple[Any, dict[str, Any]] | None:
    """The state and the values to go on from, or None where there is no checkpoint yet.

    Args:
        keys: of a job's own checkpoints, the newest first; the first that is not damaged is read.
        begin_with: of another job's, for when none of its own can be read.
        like: see `read`.
        warn: told of each checkpoint that is damaged.

    Raises:
        StorageFailure: none of the checkpoints was ever published here: beginning anew would give them all up.
    """
    known = keys or ([begin_with] if begin_with else [])
    if known and not any(storage.has_published(key) for key in known):
        raise StorageFailure(
            f"the storage has none of the job's {len(known)} checkpoints, {known[0]} the newest: it is not the "
            "one to which they were written, or was emptied.",
            hint="Give the API and all workers, on every host, the same SAE_SERVICE_STORAGE_URL.",
        )
    for key in keys:
        try:
            return read(storage, key, like)
        except DamagedCheckpoint as error:
            warn(f"{error} The one before it is used.")
    # Without it this would be another job, so there is nothing to fall back on.
    return read(storage, begin_with, like) if begin_with is not None else None


def _values(content: bytes) -> dict[str, Any]:
    try:
        values = json.loads(content)
        written = values.pop("format")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(f"the checkpoint cannot be read: {error}") from error
    if not isinstance(written, int):
        raise DamagedCheckpoint(f"the checkpoint has no format but {written!r}")
    if written != FORMAT:
        raise WrongVersion(f"the checkpoint has format {written}, and this release reads format {FORMAT}.", hint=_remedy(written))
    return values


def _put(array: np.ndarray, like: Any) -> jax.Array | np.ndarray:
    """The array where `like` is to be. JAX may take over its memory instead of copying it: nobody else may have it."""
    if isinstance(like, OnHost):
        return array
    return jax.block_until_ready(hosts.put(array, getattr(like, "sharding", None)))


def _remedy(written: int) -> str:
    remedy = "Go on with the release that wrote it, or start a new job; `initial` takes the weights of an SAE."
    if written >= FIRST_EXACT_FORMAT:
        return remedy
    return f"{remedy} If that release has resumed the job more than once, some text may have been read twice."
