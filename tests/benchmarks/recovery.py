"""Each architecture on synthetic activations (64 features in 32 dimensions): what it reconstructs and what it recovers.

    python tests/benchmarks/recovery.py [--steps N] [--seeds N] [--json FILE]

Prints a table in Markdown: one line for each setting, figures of each seed separated by slashes.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from sae_service import pipeline
from sae_service.spec import JobSpec
from sae_service.storage.objects import Storage

SETTINGS: dict[str, dict[str, Any]] = {
    "standard_tied 0.1": {"kind": "standard_tied", "l1_coefficient": 0.1},
    "standard_tied 0.2": {"kind": "standard_tied", "l1_coefficient": 0.2},
    "gated 0.2": {"kind": "gated", "l1_coefficient": 0.2},
    "gated 0.3": {"kind": "gated", "l1_coefficient": 0.3},
    "jumprelu 0.01": {"kind": "jumprelu", "l0_coefficient": 0.01, "bandwidth": 0.03, "initial_threshold": 0.03},
    "jumprelu 0.02": {"kind": "jumprelu", "l0_coefficient": 0.02, "bandwidth": 0.03, "initial_threshold": 0.03},
    "topk 3, no AuxK": {"kind": "topk", "k": 3, "aux_coefficient": 0},
    "topk 3": {"kind": "topk", "k": 3},
    "batchtopk 3, no AuxK": {"kind": "batchtopk", "k": 3, "aux_coefficient": 0},
    "batchtopk 3": {"kind": "batchtopk", "k": 3},
    "matryoshka 3": {"kind": "matryoshka", "k": 3},
    "standard 0.2": {"kind": "standard", "l1_coefficient": 0.2},
    "jumprelu, target 3": {"kind": "jumprelu", "target_l0": 3, "bandwidth": 0.03, "initial_threshold": 0.03},
    "jumprelu_tanh 0.03": {"kind": "jumprelu_tanh", "sparsity_coefficient": 0.03, "bandwidth": 0.3, "initial_threshold": 0.03},
    "p_annealing 0.05": {"kind": "p_annealing", "lp_coefficient": 0.05},
}
FIGURES = ("l0", "fvu", "relative_reconstruction_bias", "mmcs_truth_to_learned", "mcc", "f1", "dead_share")


class Quiet:
    """A reporter that says nothing."""

    def event(self, level: str, message: str) -> None:
        """Not shown."""

    def metrics(self, rows: list[dict[str, Any]]) -> None:
        """Not shown."""

    def checkpoint(self, written: pipeline.Checkpoint) -> None:
        """Not shown."""


def job(steps: int, seed: int) -> JobSpec:
    """All settings on one stream: lr 1e-3 with warm-up and decay, sparsity warm-up over a tenth."""
    optimizer = {
        "lr": 1e-3, "lr_warm_up": 0.05, "lr_warm_up_shape": "linear", "lr_decay": 0.2, "sparsity_warm_up": 0.1,
        "beta1": 0.9, "beta2": 0.999, "clip_norm": None,
    }  # fmt: skip
    return JobSpec.model_validate({
        "stream": {
            "synthetic": {"n_features": 64, "d_in": 32}, "tokens": steps * 1024, "batch": 1024, "seed": seed,
            "buffer_rows": 1 << 19,
        },
        "saes": [
            {
                "name": f"sae-{index}", "hook_name": "hook_synthetic", "architecture": {"d_sae": 64, **setting},
                "optimizer": optimizer, "normalization": "unit_mean_square",
            }
            for index, setting in enumerate(SETTINGS.values())
        ],
        "log_every": steps, "evaluation": {"tokens": 50_000}, "checkpoints": {"every_tokens": steps * 1024},
    })  # fmt: skip


def main() -> None:
    """Trains and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            final = pipeline.run(job(arguments.steps, seed), Storage(Path(folder).as_uri()), "job", Quiet())
        assert final is not None
        found.append(final.metrics)
    print("| setting |", " | ".join(FIGURES), "|\n|---" * 1 + "|---" * len(FIGURES) + "|")  # noqa: T201
    for index, name in enumerate(SETTINGS):
        cells = (" / ".join(f"{metrics[f'sae-{index}'][figure]:.3f}" for metrics in found) for figure in FIGURES)
        print(f"| {name} |", " | ".join(cells), "|")  # noqa: T201
    if arguments.json:
        arguments.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
