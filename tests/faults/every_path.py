"""Jobs that between them take each path of a step and of its rows, so that a kill on any of them would show."""

import json
import re
from pathlib import Path
from typing import Any

from sae_service.architectures import ARCHITECTURES
from sae_service.jobs.records import Job
from sae_service.kernels.choice import SMALLEST_D_SAE
from sae_service.spec import JobSpec
from sae_service.training.cohort import slots_of
from tests.faults.preload import python_path
from tests.faults.results import Result, check_alike, result
from tests.service import Service

STEPS_TO_DEAD = 10
SMALL_CHUNKS = {
    "sae_service.activations.cache_writer:CHUNK_BYTES": 0,
    "sae_service.activations.cache_writer:LEAST_BYTES": 1 << 19,
    "sae_service.activations.cached_rows:LOOK_EVERY_S": 1,
}
"""One or two batches of prompts in each chunk of the cache, so that an attempt leaves many of them."""


def saes(stream: dict[str, Any], hook_name: str) -> list[dict[str, Any]]:
    """Latents in slots, AuxK, products in bfloat16 and each way to keep moments; the third SAE has none of that.

    The first two are wide enough for slots, so most of their latents die, and soon.
    """
    optimizer = {"lr": 1e-3, "lr_warm_up": 0.1}
    common = {"hook_name": hook_name, "dead_after_tokens": STEPS_TO_DEAD * stream["batch"]}
    wide = {"d_sae": SMALLEST_D_SAE, "k": 4}
    return [
        common | {
            "name": "int8", "architecture": {"kind": "topk", **wide}, "precision": "bfloat16",
            "optimizer": optimizer | {"first_moment": "bfloat16", "second_moment": "int8"},
        },
        common | {
            "name": "factored", "architecture": {"kind": "batchtopk", **wide},
            "optimizer": optimizer | {"second_moment": "factored"},
        },
        common | {
            "name": "jumprelu", "architecture": {"kind": "jumprelu", "d_sae": 64, "bandwidth": 0.05, "initial_threshold": 0.05},
            "optimizer": optimizer | {"sparsity_warm_up": 0.2},
        },
    ]  # fmt: skip


def check_saes(service: Service, job: Job, spec: dict[str, Any]) -> None:
    """The wide SAEs among them had slots for the latents of a row, and dead latents for AuxK to train."""
    wide = {sae.name: sae.architecture for sae in JobSpec.model_validate(spec).saes if sae.architecture.d_sae == SMALLEST_D_SAE}
    assert all(slots_of(ARCHITECTURES[config.kind], config) for config in wide.values())
    last = {row.sae: row.data["dead_share"] for row in service.client.metrics(job.id)}
    assert all(last[name] > 0 for name in wide)


def small_chunks(**inside: Any) -> dict[str, str]:
    """Settings of a service whose training processes write small chunks of the activation cache.

    Args:
        inside: what else is to happen inside of them; see `inside/sitecustomize.py`.
    """
    wanted = {"module": "workers.job_process", "set": SMALL_CHUNKS, **inside}
    return {"PYTHONPATH": python_path(), "FAULTS_INSIDE": json.dumps(wanted)}


def is_cached(spec: dict[str, Any]) -> bool:
    """Whether a job has to do with the activation cache."""
    return spec["stream"].get("cache", "off") != "off"


def with_cache(spec: dict[str, Any], mode: str) -> dict[str, Any]:
    """The same job with another use of the activation cache; a synthetic one has none."""
    return spec if "synthetic" in spec["stream"] else spec | {"stream": spec["stream"] | {"cache": mode}}


def share_from_cache(service: Service, job: Job) -> float:
    """The share of the rows that the job's last attempt has read from the cache."""
    told = [re.match(r"([\d.]+)% of the", event.message) for event in service.client.events(job.id)]
    *_, last = (found for found in told if found is not None)
    return float(last[1]) / 100


def check_cache(service: Service, spec: dict[str, Any], undisturbed: Result, folder: Path) -> float:
    """One more job trains from what killed jobs have cached, and has what an undisturbed one has. Returns the share of its rows."""
    job = service.ended(service.client.submit(with_cache(spec, "use")))
    assert job.status == "succeeded", job
    check_alike(result(service, job, folder), undisturbed)
    share = share_from_cache(service, job)
    assert share > 0.5
    return share
