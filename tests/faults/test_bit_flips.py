"""Bits that flip on the disk: found wherever they are, and never trained on nor handed out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae_service.errors import DamagedCheckpoint, StorageFailure
from sae_service.storage import checkpoint
from sae_service.storage.objects import MANIFEST, Storage
from tests.faults import invariants
from tests.faults.history import History
from tests.published import published
from tests.service import Service

FILES = {"saes/a/cfg.json": b"{}", "state/arrays.safetensors": b"\x00\x01", "state/values.json": b"{}"}


def flip(path: Path, bit: int) -> None:
    """Turns over one bit of a file."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize("name", [MANIFEST, *FILES])
def test_no_single_bit_makes_a_set_of_files_read_as_another(tmp_path: Path, name: str) -> None:
    storage = Storage(tmp_path.as_uri())
    storage.publish("jobs/j/step-1", FILES)
    path = tmp_path / "jobs" / "j" / "step-1" / name
    for bit in range(8 * path.stat().st_size):
        flip(path, bit)
        try:
            found = published(storage, "jobs/j/step-1")
        except DamagedCheckpoint:
            continue
        finally:
            flip(path, bit)
        # What no hash covers is white space and the names and sizes that nobody reads.
        assert found == FILES, f"bit {bit} of {name}"


@pytest.mark.parametrize("name", [MANIFEST, checkpoint.ARRAYS, checkpoint.VALUES])
def test_no_single_bit_makes_a_state_read_as_another(tmp_path: Path, name: str) -> None:
    storage, state = Storage(tmp_path.as_uri()), {"a": np.arange(3, dtype=np.float32), "b": np.zeros((), np.int32)}
    storage.publish("jobs/j/step-1", checkpoint.to_files(state, {"n_steps": 1}))
    path = tmp_path / "jobs" / "j" / "step-1" / name
    for bit in range(8 * path.stat().st_size):
        flip(path, bit)
        try:
            found, values = checkpoint.read(storage, "jobs/j/step-1", like=state)
        except DamagedCheckpoint:
            continue
        finally:
            flip(path, bit)
        assert name == MANIFEST, f"bit {bit} of {name}"
        assert values == {"n_steps": 1}
        assert all(np.array_equal(found[leaf], state[leaf]) for leaf in state)


@pytest.mark.faults
def test_a_job_goes_on_from_the_checkpoint_before_one_with_a_flipped_bit(
    history: History, quick: dict[str, Any], tmp_path: Path, compiled: dict[str, str]
) -> None:
    service = Service(tmp_path, **compiled)
    try:
        undisturbed = service.ended(service.client.submit(quick))
        for name in (MANIFEST, "state/arrays.safetensors", "state/values.json"):
            job = service.started(quick)
            service.client.pause(job.id)
            service.until(lambda job=job: service.client.job(job.id).status == "paused")
            path = max((tmp_path / "storage" / "jobs" / job.id).iterdir()) / name
            bit = history.random.randrange(8 * path.stat().st_size)
            history.add("flip", path=str(path), bit=bit)
            flip(path, bit)
            service.client.resume(job.id)
            ended = service.ended(job)
            assert (ended.status, ended.attempt) == ("succeeded", 2)
            weights = tmp_path / "weights"
            assert invariants.hashes(service, ended, weights) == invariants.hashes(service, undisturbed, weights)
        invariants.check_quiet(service)
    finally:
        service.interrupt()


@pytest.mark.faults
def test_weights_with_a_flipped_bit_are_not_handed_out(
    history: History, quick: dict[str, Any], tmp_path: Path, compiled: dict[str, str]
) -> None:
    service = Service(tmp_path, **compiled)
    try:
        job = service.ended(service.client.submit(quick))
        (path,) = (tmp_path / "storage" / "jobs" / job.id).glob("*2000-*/saes/a/sae_weights.safetensors")
        bit = history.random.randrange(8 * path.stat().st_size)
        history.add("flip", path=str(path), bit=bit)
        flip(path, bit)
        with pytest.raises(StorageFailure, match="arrived damaged"):
            service.client.download(job.id, tmp_path / "weights")
        assert not (tmp_path / "weights" / "a" / "sae_weights.safetensors").exists()
    finally:
        service.interrupt()
