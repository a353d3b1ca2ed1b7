"""What has become of a job: the weights that a user downloads, and the state in each of its checkpoints."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from safetensors import deserialize

from sae_service.jobs.records import Checkpoint, Job
from tests.faults import invariants
from tests.service import Service

ARRAYS, VALUES = "state/arrays.safetensors", "state/values.json"
KEEP_ALL = 1000
"""As `checkpoints.keep`: no checkpoint is retired, so that each can be compared."""


@dataclass(frozen=True)
class State:
    """What a job goes on from: the parsed values, and of each array its dtype, its shape and the hash of its bytes."""

    values: dict[str, Any]
    arrays: dict[str, tuple[str, tuple[int, ...], str]]


@dataclass(frozen=True)
class Result:
    """Hashes of the weight files, and the states by step."""

    weights: dict[str, str]
    states: dict[int, State]


def result(service: Service, job: Job, folder: Path) -> Result:
    """What an ended job has left, as it is downloaded."""
    checkpoints = service.client.checkpoints(job.id)
    states = {checkpoint.step: state(service, checkpoint) for checkpoint in checkpoints}
    assert len(states) == len(checkpoints)
    return Result(invariants.hashes(service, job, folder), states)


def state(service: Service, checkpoint: Checkpoint) -> State:
    """The state in one checkpoint."""
    found: dict[str, tuple[str, tuple[int, ...], str]] = {}
    # Not as NumPy arrays: NumPy has no bfloat16.
    for name, array in deserialize(content(service, checkpoint, ARRAYS)):
        found[name] = (array["dtype"], tuple(array["shape"]), hashlib.sha256(array["data"]).hexdigest())
    return State(json.loads(content(service, checkpoint, VALUES)), found)


def content(service: Service, checkpoint: Checkpoint, path: str) -> bytes:
    """One file of a checkpoint."""
    base = f"{service.url}/v1/jobs/{checkpoint.job_id}/checkpoints/{checkpoint.id}/files"
    return httpx.get(f"{base}/{path}", timeout=60).raise_for_status().content


def check_alike(found: Result, expected: Result) -> None:
    """The same steps were saved, each with the same values and the same bytes, and so are the weights."""
    assert sorted(found.states) == sorted(expected.states)
    for step, state in sorted(found.states.items()):
        undisturbed = expected.states[step]
        assert state.values == undisturbed.values, f"the values of the checkpoint at step {step} are others"
        assert state.arrays.keys() == undisturbed.arrays.keys()
        others = [name for name, array in state.arrays.items() if array != undisturbed.arrays[name]]
        assert not others, f"arrays of the checkpoint at step {step} are others"
    assert found.weights == expected.weights
