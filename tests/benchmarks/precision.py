"""What lower precision and smaller optimizer state cost in FVU, on the demo's model.

    python -m tests.benchmarks.precision [--tokens 300000] [--lrs .001 .004] [--d-sae 1024] [--output FOLDER]

All SAEs of a learning rate and a kind begin with the same weights and see the same rows; with the model's products in
bfloat16 they see those of a job of its own. TopK has an L0 of 32, and JumpReLU has it as its target. Figures are held-out
ones, of the language model as it trained them and of SAEs in float32. Writes precision.json and precision.md into the folder.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from sae_service import pipeline
from sae_service.demo import show
from sae_service.spec import JobSpec
from sae_service.storage.objects import Storage
from tests.recorder import Recorder

HERE = Path(__file__).parent
KINDS: dict[str, dict[str, Any]] = {
    "topk": {"k": 32}, "jumprelu": {"target_l0": 32, "bandwidth": 0.05, "initial_threshold": 0.05},
}  # fmt: skip
PLAIN = "float32"
VARIANTS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "SAE bfloat16": {"precision": "bfloat16"},
    "first bfloat16": {"optimizer": {"first_moment": "bfloat16"}},
    "second factored": {"optimizer": {"second_moment": "factored"}},
    "second int8": {"optimizer": {"second_moment": "int8"}},
    "bfloat16 and int8": {"optimizer": {"first_moment": "bfloat16", "second_moment": "int8"}},
}
MODEL = "model bfloat16"


def sae(kind: str, lr: float, variant: str, d_sae: int) -> dict[str, Any]:
    """One SAE of the job."""
    given = VARIANTS[variant]
    numbers = {"lr": lr, "lr_warm_up": 0.05, "lr_decay": 0.2, "sparsity_warm_up": 0.1}
    return given | {
        "name": f"{kind}.{lr}.{variant.replace(' ', '-')}", "hook_name": "blocks.2.hook_resid_post",
        "architecture": {"kind": kind, "d_sae": d_sae, **KINDS[kind]}, "optimizer": numbers | given.get("optimizer", {}),
    }  # fmt: skip


def trained(variants: list[str], model: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of SAEs of every kind, learning rate and variant, by name."""
    spec = show.spec()
    stream = spec["stream"] | {"tokens": arguments.tokens, "batch": 1024}
    stream["model"]["precision"] = model
    job = JobSpec.model_validate({
        "stream": stream, "evaluation": {"tokens": 32_768},
        "saes": [sae(kind, lr, variant, arguments.d_sae) for kind in KINDS for lr in arguments.lrs for variant in variants],
    })  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        final = pipeline.run(job, Storage(Path(folder).as_uri()), "job", Recorder())
    assert final is not None
    return {name: {metric: found[metric] for metric in ("fvu", "l0", "ce_loss_recovered")} for name, found in final.metrics.items()}


def table(found: dict[str, Any], lrs: list[float]) -> str:
    """A line for each kind, learning rate and variant."""
    lines = ["| kind | lr | what is not float32 | fvu | fvu, difference | l0 | l0, difference |", "|---|---|---|---|---|---|---|"]
    for kind in KINDS:
        for lr in lrs:
            plain = found[f"{kind}.{lr}.{PLAIN}"]
            for variant in (*VARIANTS, MODEL):
                figures = found[f"{kind}.{lr}.{variant.replace(' ', '-')}"]
                parts = [f"{figures[name]:.4g} | {100 * (figures[name] / plain[name] - 1):+.2f} %" for name in ("fvu", "l0")]
                lines.append(f"| {kind} | {lr} | {'nothing' if variant == PLAIN else variant} | {' | '.join(parts)} |")
    return "\n".join(lines)


def main() -> None:
    """Trains, compares and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=300_000)
    parser.add_argument("--lrs", type=float, nargs="+", default=[1e-3, 4e-3])
    parser.add_argument("--d-sae", type=int, default=1024)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    found = trained(list(VARIANTS), "float32", arguments)
    of_model = trained([PLAIN], "bfloat16", arguments)
    found |= {name.replace(f".{PLAIN}", f".{MODEL.replace(' ', '-')}"): figures for name, figures in of_model.items()}
    (arguments.output / "precision.json").write_text(json.dumps(found, indent=1) + "\n")
    head = f"# Precision and the optimiser's memory\n\n{arguments.tokens} tokens, d_sae {arguments.d_sae}, on a CPU.\n\n"
    (arguments.output / "precision.md").write_text(head + table(found, arguments.lrs) + "\n")
    print(table(found, arguments.lrs))  # noqa: T201


if __name__ == "__main__":
    main()
