"""Jobs on prompts of the demo's model, in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load

from sae_service.analysis import attribution_job, steering_job
from sae_service.analysis.attribution.files import RECORD as ATTRIBUTION
from sae_service.analysis.attribution.records import Attribution
from sae_service.analysis.steering.files import COLUMNS, RECORD
from sae_service.analysis.steering.records import Steering
from sae_service.sae.sites import at
from sae_service.spec import AttributionSpec, SteeringSpec
from sae_service.storage.objects import Storage
from sae_service.surroundings import Surroundings
from tests.conftest import DEMO
from tests.looked_at import in_folder, rows_of_text, sparse_sae
from tests.recorder import Recorder

MODEL = {"name": str(DEMO / "model")}
PROMPTS = ["The king of", "My lord, the queen is not at home"]


def sae_at(folder: Path, hook_name: str, seed: int = 0, l0: float = 8) -> dict[str, str]:
    """Writes an SAE of a hook point, whose latents have the directions of rows there, and says how a job names it."""
    x = rows_of_text(hook_name=hook_name)
    return in_folder(folder, sparse_sae(x, seed=seed, l0=l0).replace(sites=at(hook_name, 128)), hook_name)


def attribution_spec(*folders: dict[str, str], **fields: Any) -> AttributionSpec:
    """A small job."""
    base = {"kind": "attribution", "model": MODEL, "prompts": PROMPTS, "contrasts": [[" king", " lord"]], "folders": folders}
    return AttributionSpec.model_validate(base | fields)


def attributed(folder: Path, job: AttributionSpec, should_stop: Callable[[], bool] = lambda: False) -> Attribution | None:
    """Carries out a job; returns its record (None if it was stopped)."""
    storage = Storage(folder.as_uri())
    final = attribution_job.run(job, Surroundings(storage, "jobs/attribute", Recorder(), should_stop))
    return None if final is None else Attribution.model_validate_json(storage.get(f"{final.key}/{ATTRIBUTION}"))


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
