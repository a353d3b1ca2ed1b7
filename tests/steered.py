"""Jobs on prompts of the demo's model, in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load

from sae_service.analysis import steering_job
from sae_service.analysis.steering.files import COLUMNS, RECORD
from sae_service.analysis.steering.records import Steering
from sae_service.spec import SteeringSpec
from sae_service.storage.objects import Storage
from sae_service.surroundings import Surroundings
from tests.conftest import DEMO
from tests.recorder import Recorder

MODEL = {"name": str(DEMO / "model")}
PROMPTS = ["The king of", "My lord, the queen is not at home"]


def steering_spec(**fields: Any) -> SteeringSpec:
    """A small job."""
    scan = {"first": -4, "last": 4, "count": 9}
    return SteeringSpec.model_validate({"kind": "steering", "model": MODEL, "prompts": PROMPTS, "coefficients": scan} | fields)


def steered(
    folder: Path, job: SteeringSpec, should_stop: Callable[[], bool] = lambda: False
) -> tuple[Steering | None, dict[str, np.ndarray]]:
    """Carries out a job; returns its record and its columns (none if it was stopped)."""
    storage = Storage(folder.as_uri())
    final = steering_job.run(job, Surroundings(storage, "jobs/steer", Recorder(), should_stop))
    if final is None:
        return None, {}
    record = Steering.model_validate_json(storage.get(f"{final.key}/{RECORD}"))
    return record, load(storage.get(f"{final.key}/{COLUMNS}"))
