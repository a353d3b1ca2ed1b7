"""What writing and reading a checkpoint add to a process's memory, as shares of the state."""

import subprocess
import sys
from pathlib import Path

import pytest

STATUS = Path("/proc/self/status")
pytestmark = pytest.mark.skipif(not STATUS.exists(), reason="only Linux says how much memory a process has had at most")
BEGIN = """
import sys
from pathlib import Path
import jax, numpy as np
from sae_service.storage import checkpoint
from sae_service.storage.objects import Storage

N, LENGTH = 8, 8 << 20
def kilobytes(name):
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])

storage = Storage(sys.argv[1])
# What the first use of everything takes is not the state's.
small = {"a": np.ones(8, np.float32)}
storage.publish("small", checkpoint.to_files(small, {}))
checkpoint.read(storage, "small", small)
"""
WRITE = """
state = {str(i): np.full(LENGTH, i, np.float32) for i in range(N)}
before = kilobytes("VmRSS:")
storage.publish("c", checkpoint.to_files(state, {}))
print((kilobytes("VmHWM:") - before) * 1024 / (4 * N * LENGTH))
"""
READ = """
like = {str(i): jax.ShapeDtypeStruct((LENGTH,), np.float32) for i in range(N)}
before = kilobytes("VmRSS:")
state, _ = checkpoint.read(storage, "c", like)
print((kilobytes("VmHWM:") - before) * 1024 / (4 * N * LENGTH))
assert all((np.asarray(state[str(i)]) == i).all() for i in range(N))
"""

WHOLE = """
from sae_service import pipeline
from sae_service.spec import JobSpec
from sae_service.training import start
from tests.recorder import Recorder

D_SAE = 1 << 16
job = JobSpec.model_validate({
    "stream": {"synthetic": {"n_features": 8, "d_in": 256}, "tokens": 4 * 64, "batch": 64},
    "saes": [{"hook_name": "hook_synthetic", "architecture": {"kind": "standard", "d_sae": D_SAE}}],
    "checkpoints": {"every_tokens": 64}, "evaluation": {"tokens": 128},
})
prepared, shares = pipeline._Training.prepare, []

def prepare(training):
    # Training goes on meanwhile: what its steps take is measured as well, so they are kept from it.
    before = kilobytes("VmRSS:")
    Path("/proc/self/clear_refs").write_text("5")
    prepared(training)()
    state = sum(leaf.nbytes for leaf in jax.tree.leaves(dict(training.trainer.states)))
    shares.append((kilobytes("VmHWM:") - before) * 1024 / state)
    return lambda: None

pipeline._Training.prepare = prepare
pipeline.run(job, storage, "whole", Recorder())
print(shares[-1])
"""


@pytest.mark.slow
def test_a_checkpoint_is_written_and_read_without_a_second_copy_of_the_state(tmp_path: Path) -> None:
    shares = {}
    for name, program in (("writing", WRITE), ("reading", READ), ("whole", WHOLE)):
        command = [sys.executable, "-c", BEGIN + program, tmp_path.as_uri()]
        shares[name] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert shares["writing"] < 0.3, "beside the snapshot"
    assert shares["reading"] < 1.3, "the state with what it takes to read it"
    assert shares["whole"] < 1.3, "the snapshot, and the SAE in its public form"
