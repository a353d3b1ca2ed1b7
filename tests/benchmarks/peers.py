"""Trains SAEs with the trainers of dictionary_learning or SAELens, in their own environment; started by quality.py.

    .venv-peers/bin/python tests/benchmarks/peers.py FOLDER LIBRARY ROWS

FOLDER holds train.npy, ROWS.npy to measure on, and LIBRARY.json, a list of experiments. Prints one JSON object a line.
"""

import json
import logging
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch


def dictionary_learning(experiment: dict[str, Any], rows: torch.Tensor) -> Any:
    """Trains on rows of mean square norm 1, as the library scales them, with its own defaults otherwise."""
    from dictionary_learning import trainers
    from dictionary_learning.trainers.standard import StandardTrainerAprilUpdate

    kind, sparsity, batch = experiment["kind"], experiment["sparsity"], experiment["batch"]
    steps = len(rows) // batch
    arguments: dict[str, Any] = {
        "steps": steps, "activation_dim": rows.shape[1], "dict_size": experiment["d_sae"], "layer": 0, "lm_name": "demo",
        "lr": experiment["lr"], "warmup_steps": steps // 20, "decay_start": int(steps * 0.8), "device": "cpu",
        "seed": experiment.get("seed", 0),
    }  # fmt: skip
    match kind:
        case "topk" | "batchtopk":
            arguments |= {"k": int(sparsity), "threshold_start_step": steps // 10}
        case "jumprelu":
            arguments |= {"target_l0": sparsity, "bandwidth": 0.03, "sparsity_warmup_steps": steps // 10}
        case _:
            arguments |= {"l1_penalty": sparsity, "sparsity_warmup_steps": steps // 10}
    made: dict[str, Any] = {
        "standard": StandardTrainerAprilUpdate, "gated": trainers.GatedSAETrainer, "jumprelu": trainers.JumpReluTrainer,
        "topk": trainers.TopKTrainer, "batchtopk": trainers.BatchTopKTrainer,
    }  # fmt: skip
    trainer = made[kind](**arguments)
    for step in range(steps):
        trainer.update(step, rows[step * batch : (step + 1) * batch])
    return trainer.ae


def sae_lens(experiment: dict[str, Any], rows: torch.Tensor) -> Any:
    """Trains on rows of mean norm sqrt(d_in), as the library scales them, with its own defaults otherwise."""
    import sae_lens
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    kind, sparsity, batch = experiment["kind"], experiment["sparsity"], experiment["batch"]
    steps = len(rows) // batch
    arguments: dict[str, Any] = {"d_in": rows.shape[1], "d_sae": experiment["d_sae"]}
    match kind:
        case "topk" | "batchtopk":
            arguments["k"] = int(sparsity)
        case "jumprelu":
            arguments |= {"l0_coefficient": sparsity, "l0_warm_up_steps": steps // 10}
        case _:
            arguments |= {"l1_coefficient": sparsity, "l1_warm_up_steps": steps // 10}
    prefix = {"standard": "Standard", "gated": "Gated", "jumprelu": "JumpReLU", "topk": "TopK", "batchtopk": "BatchTopK"}[kind]
    sae = getattr(sae_lens, f"{prefix}TrainingSAE")(getattr(sae_lens, f"{prefix}TrainingSAEConfig")(**arguments))
    config = SAETrainerConfig(
        total_training_samples=steps * batch, train_batch_size_samples=batch, lr=experiment["lr"], lr_end=experiment["lr"] / 10,
        lr_warm_up_steps=steps // 20, lr_decay_steps=steps // 5, dead_feature_window=steps // 5,
        logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    trainer = SAETrainer(config, sae, iter(rows[: steps * batch].split(batch)))
    for step in range(steps):
        trainer.step(rows[step * batch : (step + 1) * batch])
        trainer.n_training_steps += 1
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        return sae_lens.SAE.load_from_disk(folder)


LIBRARIES: dict[str, tuple[Callable[..., Any], Callable[[torch.Tensor], torch.Tensor]]] = {
    "dictionary_learning": (dictionary_learning, lambda rows: rows.square().sum(dim=1).mean().sqrt()),
    "sae_lens": (sae_lens, lambda rows: rows.norm(dim=1).mean() / math.sqrt(rows.shape[1])),
}
"""Each library's training, and what it divides the rows by."""


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
    """All experiments, one after the other, on the rows in each one's order."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    folder, library, others = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    train, scale_of = LIBRARIES[library]
    rows, held_out = (torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("train", others))
    scale = scale_of(rows)
    rows, held_out = rows / scale, held_out / scale
    for experiment in json.loads((folder / f"{library}.json").read_text()):
        seed = experiment.get("seed", 0)
        order = np.random.default_rng(seed).permutation(len(rows)) if seed else np.arange(len(rows))
        torch.manual_seed(seed)
        began = time.monotonic()
        sae = train(experiment, rows[order])
        seconds = time.monotonic() - began
        print(json.dumps(experiment | {"library": library, "seconds": seconds} | measured(sae, held_out)), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
