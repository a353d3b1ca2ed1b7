"""What a job holds on the device: to go on, or to be measured, it needs no more than to train."""

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import pytest

from sae_service import pipeline
from sae_service.spec import JobSpec
from sae_service.storage.objects import Storage
from sae_service.training.loop import Trainer
from tests.recorder import Recorder

D_IN, D_SAE, BATCH, STEPS = 256, 16_384, 64, 12
STATE = 3 * 4 * 2 * D_IN * D_SAE
"""Bytes of an SAE's weights and Adam's memory of them."""


def job() -> JobSpec:
    """Two SAEs whose states are nearly all that there is."""
    numbers = {"k": 8}
    return JobSpec.model_validate({
        "stream": {
            "synthetic": {"n_features": 64, "d_in": D_IN}, "tokens": STEPS * BATCH, "batch": BATCH, "buffer_rows": 4 * BATCH,
        },
        "saes": [
            {"name": name, "hook_name": "hook_synthetic", "architecture": {"kind": "topk", "d_sae": D_SAE, **numbers}}
            for name in "ab"
        ],
        "checkpoints": {"every_tokens": 6 * BATCH},
        "evaluation": {"tokens": 256},
        "log_every": 4,
    })  # fmt: skip


def live_bytes() -> int:
    """Bytes of all memory that JAX's arrays hold; several of them may be views of the same."""
    buffers: dict[int, int] = {}
    for array in jax.live_arrays():
        # One that is let go of meanwhile counts for nothing.
        with suppress(RuntimeError, ValueError):
            buffers[array.unsafe_buffer_pointer()] = array.nbytes
    return sum(buffers.values())


@contextmanager
def peaks_by_phase(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """The most that was held before the first step, while training, and behind the last one."""
    phase, before, done = ["beginning"], live_bytes(), threading.Event()
    found = dict.fromkeys(("beginning", "training", "ending"), 0)
    really = Trainer.step

    def step(trainer: Trainer, rows: Any) -> None:
        phase[0] = "training"
        really(trainer, rows)
        jax.block_until_ready(trainer.states)
        found["training"] = max(found["training"], live_bytes() - before)
        if trainer.n_steps == trainer.job.stream.n_steps:
            phase[0] = "ending"

    def watch() -> None:
        while not done.wait(0.002):
            now = phase[0]
            found[now] = max(found[now], live_bytes() - before)

    watcher, interval = threading.Thread(target=watch), sys.getswitchinterval()
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", step)
        # A look holds what it counts, and is not to be interrupted by what would let go of it.
        sys.setswitchinterval(1)
        watcher.start()
        try:
            yield found
        finally:
            done.set()
            watcher.join()
            sys.setswitchinterval(interval)


def peaks(folder: Path, monkeypatch: pytest.MonkeyPatch, resume_from: Sequence[str] = ()) -> tuple[dict[str, int], Recorder]:
    recorder = Recorder()
    with peaks_by_phase(monkeypatch) as found:
        pipeline.run(job(), Storage(folder.as_uri()), "jobs/test", recorder, resume_from=resume_from)
    return found, recorder


@pytest.mark.slow
def test_a_job_needs_no_more_memory_to_go_on_or_to_be_measured_than_to_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh, recorder = peaks(tmp_path, monkeypatch)
    resumed, _ = peaks(tmp_path, monkeypatch, [recorder.checkpoints[0].key])
    for found in (fresh, resumed):
        assert 2 * STATE <= found["training"] <= 2.7 * STATE, "both states, and one SAE that is being saved"
        assert found["beginning"] <= 1.1 * found["training"]
        assert found["ending"] <= found["training"]
    assert resumed["beginning"] >= 2 * STATE, "the watch sees what is loaded"
