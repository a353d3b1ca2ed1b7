"""The peers' steps of one kind of SAE, one at a time as `step.py` asks for them; runs in .venv-peers."""

import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

L0, N_STEPS, WARM_UP = 32, 1_000_000, 2
Step = Callable[[torch.Tensor], Any]


def dictionary_learning(kind: str, d_in: int, d_sae: int) -> Step:
    """One step of the library's trainer with its own defaults."""
    from dictionary_learning import trainers
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
    from dictionary_learning.trainers.standard import StandardTrainerAprilUpdate

    made: dict[str, tuple[Any, dict[str, Any]]] = {
        "topk": (trainers.TopKTrainer, {"k": L0}),
        "batchtopk": (trainers.BatchTopKTrainer, {"k": L0}),
        "matryoshka": (MatryoshkaBatchTopKTrainer, {"k": L0, "group_fractions": [1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2]}),
        "jumprelu": (trainers.JumpReluTrainer, {"target_l0": float(L0)}),
        "standard": (StandardTrainerAprilUpdate, {}),
        "gated": (trainers.GatedSAETrainer, {}),
    }
    trainer_class, extra = made[kind]
    trainer = trainer_class(
        steps=N_STEPS, activation_dim=d_in, dict_size=d_sae, layer=0, lm_name="none", lr=1e-6, device="cpu", seed=0, **extra
    )
    taken = 0

    def step(rows: torch.Tensor) -> None:
        nonlocal taken
        trainer.update(taken, rows)
        taken += 1

    return step


def sae_lens(kind: str, d_in: int, d_sae: int) -> Step:
    """One step of the library's trainer with its own defaults."""
    import sae_lens
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    names = {
        "standard": "Standard", "gated": "Gated", "jumprelu": "JumpReLU", "topk": "TopK", "batchtopk": "BatchTopK",
        "matryoshka": "MatryoshkaBatchTopK",
    }  # fmt: skip
    arguments: dict[str, Any] = {"d_in": d_in, "d_sae": d_sae}
    if kind in ("topk", "batchtopk", "matryoshka"):
        arguments["k"] = L0
    if kind == "matryoshka":
        arguments["matryoshka_widths"] = [d_sae // share for share in (16, 8, 4, 2)]
    sae = getattr(sae_lens, f"{names[kind]}TrainingSAE")(getattr(sae_lens, f"{names[kind]}TrainingSAEConfig")(**arguments))
    config = SAETrainerConfig(
        total_training_samples=N_STEPS, train_batch_size_samples=1, lr=1e-6, lr_end=1e-7, lr_warm_up_steps=0, lr_decay_steps=0,
        dead_feature_window=N_STEPS, logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    trainer = SAETrainer(config, sae, iter(()))

    def step(rows: torch.Tensor) -> None:
        trainer.step(rows)
        trainer.n_training_steps += 1

    return step


def main() -> None:
    """Makes the steps, and takes one for each line that comes in."""
    order = json.loads(sys.argv[1])
    torch.set_num_threads(order["threads"])
    logging.disable(logging.WARNING)
    batches = torch.from_numpy(np.load(order["rows"])).split(order["batch"])
    libraries = {"sae_lens": sae_lens, "dictionary_learning": dictionary_learning}
    steps = {name: made(order["kind"], batches[0].shape[1], order["d_sae"]) for name, made in libraries.items()}
    taken = dict.fromkeys(steps, 0)

    def step(name: str) -> float:
        began = time.process_time()
        steps[name](batches[taken[name] % len(batches)])
        taken[name] += 1
        return time.process_time() - began

    for name in [*steps] * WARM_UP:
        step(name)
    print("ANSWER", json.dumps([*steps]), flush=True)  # noqa: T201
    for line in sys.stdin:
        print("ANSWER", step(line.strip()), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
