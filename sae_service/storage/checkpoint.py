"""Any pytree of arrays, with a small JSON value beside it, to and from files. Restoring is exact or an error."""

import json
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from sae_service.errors import DamagedCheckpoint, WrongVersion

ARRAYS, VALUES = "state/arrays.safetensors", "state/values.json"
FORMAT = 3
FIRST_EXACT_FORMAT = 3
"""Before it, a job that was resumed twice within a group of documents went on from the beginning of the text."""


def to_files(state: Any, values: dict[str, Any]) -> dict[str, bytes]:
    """The files of a checkpoint by path; `values` is anything that JSON holds exactly."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf, order="C") for path, leaf in leaves}
    return {ARRAYS: save(arrays), VALUES: json.dumps({"format": FORMAT, **values}).encode()}


def from_files(files: dict[str, bytes], like: Any) -> tuple[Any, dict[str, Any]]:
    """The state and the values; `like` gives the shapes.

    Raises:
        DamagedCheckpoint: something does not fit.
        WrongVersion: another release wrote it. It is as good as ever there, so nothing is to take its place.
    """
    try:
        arrays, values = load(files[ARRAYS]), json.loads(files[VALUES])
    except (KeyError, ValueError, SafetensorError) as error:
        raise DamagedCheckpoint(f"the checkpoint cannot be read: {error}") from error
    written = values.pop("format", None)
    if isinstance(written, int) and written != FORMAT:
        raise WrongVersion(f"the checkpoint has format {written}, and this release reads format {FORMAT}.", hint=_remedy(written))
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [jax.tree_util.keystr(path) for path, _ in paths]
    if written is None or sorted(names) != sorted(arrays):
        raise DamagedCheckpoint("the checkpoint was written for other SAEs")
    for name, (_, leaf) in zip(names, paths, strict=True):
        if arrays[name].shape != np.shape(leaf) or arrays[name].dtype != np.asarray(leaf).dtype:
            raise DamagedCheckpoint(f"{name} has shape {arrays[name].shape}, expected {np.shape(leaf)}")
    leaves = [jax.numpy.asarray(arrays[name]) for name in names]
    return jax.tree_util.tree_unflatten(structure, leaves), values


def _remedy(written: int) -> str:
    remedy = "Go on with the release that wrote it, or start a new job; `initial` takes the weights of an SAE."
    if written >= FIRST_EXACT_FORMAT:
        return remedy
    return f"{remedy} If that release has resumed the job more than once, some text may have been read twice."
