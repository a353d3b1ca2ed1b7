"""Jobs that measure the demo's model in this process."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load

from sae_service.analysis import statistics_job
from sae_service.analysis.statistics.files import COLUMNS, RECORD
from sae_service.analysis.statistics.records import Statistics
from sae_service.spec import StatisticsSpec
from sae_service.storage.objects import Storage
from sae_service.surroundings import Surroundings
from tests.conftest import DEMO
from tests.recorder import Recorder

STREAM: dict[str, Any] = {
    "model": {"name": str(DEMO / "model")}, "dataset": {"path": str(DEMO / "text"), "split": "test"},
    "context_size": 48, "prompts": 8,
}  # fmt: skip


def statistics_spec(**fields: Any) -> dict[str, Any]:
    """A small job."""
    return {"kind": "statistics", "stream": STREAM, "tokens": 48 * 40, "attention_tokens": 48 * 24, "cut_positions": 24} | fields


def measured(
    folder: Path, spec: dict[str, Any], should_stop: Callable[[], bool] = lambda: False, resume_from: tuple[str, ...] = ()
) -> tuple[Recorder, Statistics | None, dict[str, np.ndarray]]:
    """Carries out a job; returns its news, its record and its columns (none if it was stopped)."""
    recorder, storage = Recorder(), Storage(folder.as_uri())
    around = Surroundings(storage, "jobs/measure", recorder, should_stop, resume_from)
    final = statistics_job.run(StatisticsSpec.model_validate(spec), around)
    if final is None:
        return recorder, None, {}
    record = Statistics.model_validate(json.loads(storage.get(f"{final.key}/{RECORD}")))
    return recorder, record, load(storage.get(f"{final.key}/{COLUMNS}"))
