"""Jobs whose SAEs are split over eight devices, and the same that go on elsewhere. Run by a test, in a process that has eight.

Its argument is a folder. It prints one line of JSON.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load

from sae_service.activations.model import LanguageModel
from sae_service.evaluation.on_text import HeldOutText
from sae_service.sae.sites import at
from sae_service.spec import JobSpec
from sae_service.training.placement import Place, mesh_of
from tests.saes import random_sae
from tests.small_jobs import small_job
from tests.synthetic_jobs import BATCH, FILL, job, train

STEPS = 2 * FILL
SPLIT = {"gated": "latents", "batchtopk": "latents", "topk": "batch"}
NUMBERS: dict[str, dict[str, Any]] = {"gated": {"resample_at": [5]}, "batchtopk": {"k": 3}, "topk": {"k": 3}}


def spec(is_split: bool) -> JobSpec:
    """Three SAEs, of which one starts latents anew."""
    whole = job(STEPS, gpus=8 if is_split else 1, checkpoints={"every_tokens": 5 * BATCH, "keep": 9})
    first = whole["saes"][0]
    whole["saes"] = [
        first | {"name": kind, "architecture": {"kind": kind, "d_sae": 32, **numbers}, "shard": SPLIT[kind] if is_split else "none"}
        for kind, numbers in NUMBERS.items()
    ]
    return JobSpec.model_validate(whole)


def arrays(files: dict[str, bytes]) -> dict[str, np.ndarray[Any, Any]]:
    """All weights of a final checkpoint, and the state."""
    loaded = {path: load(content) for path, content in files.items() if path.endswith("safetensors")}
    return {f"{path}:{name}": array for path, found in loaded.items() for name, array in found.items()}


def difference(one: dict[str, bytes], other: dict[str, bytes]) -> float:
    """The largest one of a weight, a moment or a count."""
    ours, theirs = arrays(one), arrays(other)
    assert ours.keys() == theirs.keys()
    return max(float(np.max(np.abs(ours[name].astype(float) - theirs[name]), initial=0)) for name in ours if ".window" not in name)


def jobs(folder: Path) -> dict[str, Any]:
    """A split job; one that goes on from it on one device, and from that on eight again; and one that goes on as it was."""
    recorder, split = train(folder, spec(True))
    earlier = {written.step: written.key for written in recorder.checkpoints}
    gathered, on_one = train(folder, spec(False), begin_with=earlier[5])
    later = {written.step: written.key for written in gathered.checkpoints}
    _, again = train(folder, spec(True), begin_with=later[10])
    _, resumed = train(folder, spec(True), begin_with=earlier[10])
    finals = [found.checkpoints[-1].metrics for found in (recorder, gathered)]
    return {
        "warnings": [message for level, message in recorder.events if level == "warning"],
        "on_one": difference(split, on_one),
        "on_eight_again": difference(split, again),
        "resumed_bytes": [path for path in split if path.endswith("safetensors") and split[path] != resumed[path]],
        "fvu": [[final[kind]["fvu"] for kind in SPLIT] for final in finals],
    }


def held_out_figures() -> list[list[float]]:
    """The figures of an SAE on text, whole on one device and split by its latents."""
    stream = JobSpec.model_validate(small_job()).stream
    model = LanguageModel(stream.text_source[0], "cpu")
    sae = random_sae("topk", 128, 64).replace(sites=at("blocks.1.hook_resid_post", 128))
    split = Place(mesh_of(jax.devices()), "d_sae").put(sae)
    found = HeldOutText(stream, 1024, model).evaluate({"whole": lambda: sae, "split": lambda: split})
    return [[found[name][figure] for figure in ("fvu", "l0", "ce_loss_sae")] for name in ("whole", "split")]


if __name__ == "__main__":
    assert len(jax.devices()) == 8
    sys.stdout.write(json.dumps(jobs(Path(sys.argv[1])) | {"held_out": held_out_figures()}))
