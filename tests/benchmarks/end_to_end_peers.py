"""Trains JumpReLU SAEs from text by SAELens's own runners, for `end_to_end.py`; runs in .venv-peers.

    .venv-peers/bin/python tests/benchmarks/end_to_end_peers.py ORDER

ORDER is JSON: model and text (paths), tokens, context_size, batch, prompts, buffer_rows, layer, d_in, d_sae, lr, threads, and
coefficients, one for each SAE.
"""

import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset


def main() -> None:
    """Trains, and writes the SAEs into a folder that is deleted."""
    order: dict[str, Any] = json.loads(sys.argv[1])
    torch.set_num_threads(order["threads"])
    logging.disable(logging.WARNING)
    import sae_lens
    from sae_lens.config import LoggingConfig

    made = [
        sae_lens.JumpReLUTrainingSAEConfig(d_in=order["d_in"], d_sae=order["d_sae"], l0_coefficient=coefficient)
        for coefficient in order["coefficients"]
    ]
    hook_name = f"transformer.h.{order['layer']}"
    text = load_dataset("json", data_files=order["text"], split="train", streaming=True)
    with tempfile.TemporaryDirectory() as folder:
        common: dict[str, Any] = {
            "model_name": order["model"], "model_class_name": "AutoModelForCausalLM", "dataset_path": order["text"],
            "context_size": order["context_size"], "training_tokens": order["tokens"],
            "store_batch_size_prompts": order["prompts"], "train_batch_size_tokens": order["batch"],
            "n_batches_in_buffer": order["buffer_rows"] // order["context_size"], "exclude_special_tokens": True,
            "lr": order["lr"], "logger": LoggingConfig(log_to_wandb=False), "checkpoint_path": None,
            "output_path": str(Path(folder) / "output"),
        }  # fmt: skip
        if len(made) == 1:
            config = sae_lens.LanguageModelSAERunnerConfig(sae=made[0], hook_name=hook_name, is_dataset_tokenized=False, **common)
            sae_lens.LanguageModelSAETrainingRunner(config, override_dataset=text).run()
        else:
            saes = {f"jumprelu_{index}": sae for index, sae in enumerate(made)}
            many = sae_lens.MultiSAETrainingRunnerConfig(saes=saes, hook_names=hook_name, **common)
            sae_lens.MultiSAETrainingRunner(many, override_dataset=text).run()


if __name__ == "__main__":
    main()
