"""Trains SAEs with dictionary_learning's own trainers, in its own environment; started by quality.py.

    .venv-peers/bin/python tests/benchmarks/peers.py FOLDER

FOLDER holds train.npy, held_out.npy and peers.json, a list of experiments. Prints one JSON object a line.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dictionary_learning.trainers import BatchTopKTrainer, GatedSAETrainer, JumpReluTrainer, TopKTrainer
from dictionary_learning.trainers.standard import StandardTrainerAprilUpdate

TRAINERS = {
    "standard": StandardTrainerAprilUpdate,
    "gated": GatedSAETrainer,
    "jumprelu": JumpReluTrainer,
    "topk": TopKTrainer,
    "batchtopk": BatchTopKTrainer,
}


def trainer(experiment: dict[str, Any], d_in: int, steps: int) -> Any:
    """The library's trainer with its own defaults, but for what the experiment sets."""
    kind, sparsity = experiment["kind"], experiment["sparsity"]
    arguments: dict[str, Any] = {
        "steps": steps, "activation_dim": d_in, "dict_size": experiment["d_sae"], "layer": 0, "lm_name": "demo",
        "lr": experiment["lr"], "warmup_steps": steps // 20, "decay_start": int(steps * 0.8), "seed": 0, "device": "cpu",
    }  # fmt: skip
    match kind:
        case "topk" | "batchtopk":
            arguments |= {"k": int(sparsity), "threshold_start_step": steps // 10}
        case "jumprelu":
            arguments |= {"target_l0": sparsity, "bandwidth": 0.05, "sparsity_warmup_steps": steps // 10}
        case _:
            arguments |= {"l1_penalty": sparsity, "sparsity_warmup_steps": steps // 10}
    return TRAINERS[kind](**arguments)


def measured(sae: Any, held_out: torch.Tensor) -> dict[str, float]:
    """FVU and L0 on held-out rows."""
    with torch.no_grad():
        acts = sae.encode(held_out)
        error = (held_out - sae.decode(acts)).square().sum()
        variance = (held_out - held_out.mean(dim=0)).square().sum()
    fires = acts > 0
    return {
        "l0": float(fires.sum(dim=1).float().mean()),
        "fvu": float(error / variance),
        "never_fired_share": float((fires.sum(dim=0) == 0).float().mean()),
    }


def main() -> None:
    """All experiments, one after the other, on the rows in their order, scaled to mean square norm 1."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    rows, held_out = (torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("train", "held_out"))
    scale = rows.square().sum(dim=1).mean().sqrt()
    rows, held_out = rows / scale, held_out / scale
    for experiment in json.loads((folder / "peers.json").read_text()):
        batch = experiment["batch"]
        steps = len(rows) // batch
        began = time.monotonic()
        training = trainer(experiment, rows.shape[1], steps)
        for step in range(steps):
            training.update(step, rows[step * batch : (step + 1) * batch])
        found = measured(training.ae, held_out) | {"seconds": time.monotonic() - began}
        print(json.dumps(experiment | {"library": "dictionary_learning"} | found), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
