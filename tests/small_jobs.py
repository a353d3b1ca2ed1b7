"""Small jobs on the model and the text that ship with the package, trained in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sae_service import pipeline
from sae_service.spec import JobSpec
from sae_service.storage.cache import ActivationCache
from sae_service.storage.objects import Storage
from sae_service.training.loop import Trainer
from tests.conftest import DEMO
from tests.published import published
from tests.recorder import Recorder

KINDS = {
    "standard": {"l1_coefficient": 1.0},
    "gated": {"l1_coefficient": 0.1, "resample_at": []},
    "jumprelu": {"l0_coefficient": 0.003, "bandwidth": 0.05, "initial_threshold": 0.05},
}


def small_job(**stream: Any) -> dict[str, Any]:
    """Three SAEs, 24 steps in three fills."""
    return {
        "stream": {
            "model": {"name": str(DEMO / "model")},
            "dataset": {"path": str(DEMO / "text"), "held_out_split": "test"},
            "tokens": 24 * 256, "batch": 256, "buffer_rows": 8 * 256, "prompts": 4, "seed": 3,
        } | stream,
        "saes": [
            {
                "hook_name": "blocks.1.hook_resid_post" if kind == "gated" else "blocks.2.hook_resid_post",
                "architecture": {"kind": kind, "d_sae": 256, **numbers},
                "optimizer": {"lr": 1e-3, "lr_warm_up": 0.1, "sparsity_warm_up": 0.2},
            }
            for kind, numbers in KINDS.items()
        ],
        "checkpoints": {"every_tokens": 7 * 256},
        "evaluation": {"tokens": 1024},
        "log_every": 5,
    }  # fmt: skip


def train(
    folder: Path, job: dict[str, Any], resume_from: tuple[str, ...] = (), stop_after: int | None = None,
    alive: Callable[[], None] = lambda: None, recorder: Recorder | None = None, cache: ActivationCache | None = None,
) -> tuple[Recorder, dict[str, bytes]]:  # fmt: skip
    """Runs a job; returns its news and the files of its final checkpoint (none if it was stopped)."""
    recorder, storage, done = recorder or Recorder(), Storage(folder.as_uri()), []
    step = Trainer.step

    def counted(trainer: Trainer, rows: dict[str, Any]) -> None:
        step(trainer, rows)
        done.append(trainer.n_steps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", counted)
        final = pipeline.run(
            JobSpec.model_validate(job), storage, "jobs/test", recorder,
            should_stop=lambda: stop_after is not None and len(done) >= stop_after, resume_from=resume_from,
            alive=alive, cache=cache,
        )  # fmt: skip
    return recorder, published(storage, final.key) if final else {}


def weights(files: dict[str, bytes]) -> dict[str, bytes]:
    """Those of a checkpoint's files that hold weights."""
    return {path: content for path, content in files.items() if path.endswith("safetensors")}
