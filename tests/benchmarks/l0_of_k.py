"""Whether BatchTopK and Matryoshka have, on held-out text, as many active latents as were asked for.

    python -m tests.benchmarks.l0_of_k [--model FOLDER --hook NAME] [--steps 32 100 400] [--lrs 1e-3 4e-3] [--tokens N]

Trains one job for each number of steps, through the pipeline, on the demo's text, and prints a table in Markdown. The
figures are of one pass over held-out rows; the model is run up to the hook point only.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp

import sae_service
from sae_service import pipeline
from sae_service.activations.model import LanguageModel
from sae_service.activations.torch_to_jax import to_jax
from sae_service.evaluation.on_text import held_out_batches, reconstructed
from sae_service.evaluation.tally import Tally
from sae_service.formats import folder
from sae_service.sae.reconstruction import reconstruction
from sae_service.spec import JobSpec
from sae_service.storage.objects import Storage
from tests.benchmarks.recovery import Quiet

DEMO = Path(sae_service.__file__).parent / "demo"
KINDS = ("batchtopk", "matryoshka")
NO_LIMIT = jnp.full(1, jnp.inf)


def job(arguments: argparse.Namespace, n_steps: int) -> JobSpec:
    """Each kind at each learning rate, on one stream."""
    return JobSpec.model_validate({
        "stream": {
            "model": {"name": arguments.model}, "dataset": {"path": str(DEMO / "text"), "held_out_split": "test"},
            "tokens": n_steps * arguments.batch, "batch": arguments.batch,
        },
        "saes": [
            {
                "name": f"{kind}-{lr:g}", "hook_name": arguments.hook,
                "architecture": {"kind": kind, "d_sae": arguments.d_sae, "k": arguments.k},
                "optimizer": {"lr": lr, "lr_warm_up": 0.05},
            }
            for kind in KINDS
            for lr in arguments.lrs
        ],
        "evaluation": {"tokens": 128}, "log_every": n_steps,
    })  # fmt: skip


def held_out(spec: JobSpec, n_tokens: int) -> Iterator[tuple[Any, Any]]:
    """Rows of held-out text at the hook point, and 1 for each that counts."""
    model = LanguageModel(spec.stream.text_source[0], "cpu")
    for batch in held_out_batches(spec.stream, n_tokens, model):
        (rows,) = model.activations(batch.tokens, spec.hook_names).values()
        yield to_jax(rows.flatten(0, 1)), jnp.asarray(batch.keep.ravel(), jnp.float32)


def main() -> None:
    """Trains and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(DEMO / "model"))
    parser.add_argument("--hook", default="blocks.2.hook_resid_post")
    parser.add_argument("--steps", type=int, nargs="+", default=[32, 100, 400])
    parser.add_argument("--lrs", type=float, nargs="+", default=[3e-4, 1e-3, 4e-3])
    parser.add_argument("--d-sae", type=int, default=1024)
    parser.add_argument("--k", type=float, default=32)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=32_768)
    arguments = parser.parse_args()
    rows = list(held_out(job(arguments, 1), arguments.tokens))
    print("| steps | kind | lr | l0 | l0 / k | fvu | fvu_by_row |\n|---|---|---|---|---|---|---|")  # noqa: T201
    for n_steps in arguments.steps:
        spec = job(arguments, n_steps)
        with tempfile.TemporaryDirectory() as place:
            final = pipeline.run(spec, Storage(Path(place).as_uri()), "job", Quiet())
            assert final is not None
            for sae in spec.saes:
                found, tally = folder.load(Path(place) / final.key / "saes" / sae.name).replace(sites=None), Tally()
                for x, weights in rows:
                    tally.add(reconstructed(found, x, x, weights, (x.shape[1],), NO_LIMIT)[1])
                measured = reconstruction(tally.sums)
                kind, lr, l0 = sae.architecture.kind, sae.optimizer.lr, measured["l0"]
                figures = " | ".join(f"{measured[name]:.4f}" for name in ("fvu", "fvu_by_row"))
                print(f"| {n_steps} | {kind} | {lr:g} | {l0:.1f} | {l0 / arguments.k:.3f} | {figures} |", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
