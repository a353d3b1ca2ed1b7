"""Short jobs on synthetic rows, trained in this process."""

from pathlib import Path
from typing import Any

from sae_service import pipeline
from sae_service.spec import JobSpec
from sae_service.storage.objects import Storage
from tests.published import published
from tests.recorder import Recorder

BATCH, FILL = 64, 8


def job(steps: int, **changes: Any) -> dict[str, Any]:
    """Two SAEs on synthetic rows; nothing in it depends on how long it is."""
    return {
        "stream": {
            "synthetic": {"n_features": 32, "d_in": 16, "firing_probability": 0.1}, "tokens": steps * BATCH, "batch": BATCH,
            "buffer_rows": FILL * BATCH,
        },
        "saes": [
            {
                "name": name, "hook_name": "hook_synthetic", "dead_after_tokens": 500,
                "architecture": {"kind": name, "d_sae": 32, **numbers},
                "optimizer": {"lr": 1e-3, "lr_warm_up": 5, "sparsity_warm_up": 5, "lr_decay": 0},
            }
            for name, numbers in (("standard", {"l1_coefficient": 0.5}), ("batchtopk", {"k": 3}))
        ],
        "checkpoints": {"every_tokens": 10 * BATCH, "keep": 9},
        "evaluation": {"tokens": 512},
        "log_every": 5,
    } | changes  # fmt: skip


def train(folder: Path, spec: JobSpec, begin_with: str | None = None) -> tuple[Recorder, dict[str, bytes]]:
    """Runs a job to its end; returns its news and the files of its final checkpoint."""
    recorder, storage = Recorder(), Storage(folder.as_uri())
    final = pipeline.run(spec, storage, "jobs/test", recorder, begin_with=begin_with)
    assert final is not None
    return recorder, published(storage, final.key)
