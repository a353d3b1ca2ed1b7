"""Our SAEs beside those of dictionary_learning and SAELens on one and the same file of activations: FVU against L0.

    python -m tests.benchmarks.quality FOLDER [--hooks H ...] [--tokens N] [--lrs LR ...] [--seeds S ...] [--kinds K ...] ...

All get the same rows in the same order, the same batch, the same share of warm-up and decay. First the learning rate is
chosen: the best of three for each library, hook point, kind and sparsity, or for standard and gated the best at the first
of SPARSITIES, on held_out.npy. What is reported is trained anew with that rate, from other initial values and on the rows
in another order, once for each seed, and measured on reported.npy, which no choice has seen. What has been measured is
kept in FOLDER and not measured again. Writes quality.md and quality.png into FOLDER. The peers need .venv-peers
(make test-peers).
"""

import argparse
import json
import subprocess
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_service.activations.documents import Part
from sae_service.activations.model import LanguageModel, keep_mask
from sae_service.activations.tokens import Cursor, PackedTokens
from sae_service.architectures import ARCHITECTURES
from sae_service.demo import show
from sae_service.numerics import squared_error, variance_of
from sae_service.sae.inference import unscaled
from sae_service.spec import JobSpec
from sae_service.training import start
from sae_service.training.loop import Trainer
from sae_service.training.placement import placement
from tests.benchmarks import quality_report

PEERS = Path(__file__).parents[2] / ".venv-peers" / "bin" / "python"
KINDS = ("standard", "gated", "jumprelu", "topk", "batchtopk")
SEARCHED = ("topk", "batchtopk", "jumprelu")
"""The kinds for which every learning rate is tried at each sparsity; for the others at the first one."""
GIVEN_L0 = (32, 16, 64)
SPARSITIES: dict[str, dict[str, tuple[float, ...]]] = {
    "ours": {
        "standard": (1.0, 1.8, 0.6, 0.4, 0.35, 0.28, 0.2), "gated": (0.11, 0.2, 0.07, 0.045),
        "jumprelu": (0.18, 0.36, 0.09, 0.055, 0.038, 0.03),
        "topk": GIVEN_L0, "batchtopk": GIVEN_L0,
    },
    "dictionary_learning": {
        "standard": (0.13, 0.26, 0.07, 0.04, 0.03), "gated": (0.2, 0.4, 0.1, 0.05), "jumprelu": GIVEN_L0, "topk": GIVEN_L0,
        "batchtopk": GIVEN_L0,
    },
    "sae_lens": {
        "standard": (1.0, 2.0, 0.6, 0.42, 0.3, 0.2), "gated": (1.0, 1.8, 0.5, 0.25), "jumprelu": (0.2, 0.4, 0.12, 0.07, 0.04),
        "topk": GIVEN_L0, "batchtopk": GIVEN_L0,
    },
}  # fmt: skip
"""k, the target L0, or a coefficient on L1 or L0: as many of these as enclose an L0 of 16 to 64."""
SCALED = {"jumprelu": {"normalization": "sqrt_d_in"}}
"""Rows longer than by default, so that a step of Adam moves thresholds and biases by a smaller part of what they are."""
D_SAE, HELD_OUT_ROWS, BLOCK = 1024, 40_000, 1 << 17
PASSES = 13
"""Of so many forward passes over the text of training the rows of one are kept for the report."""


def main() -> None:
    """Harvests, trains, compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hooks", nargs="+", default=["blocks.1.hook_resid_post", "blocks.2.hook_resid_post"])
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--lrs", type=float, nargs="+", default=[4e-3, 8e-3, 1.6e-2])
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--libraries", nargs="+", default=list(SPARSITIES))
    arguments = parser.parse_args()
    for hook in arguments.hooks:
        harvest(arguments.folder / hook, hook, arguments.tokens)
        for library in arguments.libraries:
            for found in experiments(arguments.folder / hook, library, arguments):
                print(json.dumps(found), flush=True)  # noqa: T201
    quality_report.write(arguments.folder)


def experiments(folder: Path, library: str, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What a library makes of each kind: with every learning rate, to choose one, and then with the chosen one alone."""
    shared = {"batch": arguments.batch, "d_sae": D_SAE, "tokens": arguments.tokens}
    kinds = {kind: SPARSITIES[library][kind] for kind in arguments.kinds}
    chosen: dict[tuple[str, float], float] = {}
    for kind, sparsities in kinds.items():
        for index, sparsity in enumerate(sparsities):
            searched = kind in SEARCHED or index == 0
            rates = arguments.lrs if searched else [chosen[kind, sparsities[0]]]
            wanted = [{"kind": kind, "sparsity": sparsity, "lr": lr} | shared for lr in rates]
            tried = yield from measured(folder, library, "held_out", wanted)
            chosen[kind, sparsity] = min(tried, key=lambda found: found["fvu"] * found["l0"])["lr"]
    for seed in arguments.seeds:
        again = shared | {"seed": seed}
        wanted = [{"kind": kind, "sparsity": sparsity, "lr": lr} | again for (kind, sparsity), lr in chosen.items()]
        yield from measured(folder, library, "reported", wanted)


def measured(
    folder: Path, library: str, rows: str, wanted: list[dict[str, Any]]
) -> Generator[dict[str, Any], None, list[dict[str, Any]]]:
    """Yields the results of the experiments not made before, on one set of rows, and returns those of all."""
    log = folder / rows / f"{library}.jsonl"
    log.parent.mkdir(exist_ok=True)
    known = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    missing = [item for item in wanted if not any(item.items() <= found.items() for found in known)]
    with log.open("a") as file:
        for found in trained(folder, library, rows, missing):
            known.append(found)
            file.write(json.dumps(found) + "\n")
            file.flush()
            yield found
    return [next(found for found in known if item.items() <= found.items()) for item in wanted]


def trained(folder: Path, library: str, rows: str, wanted: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The results of experiments, one after the other."""
    if library == "ours":
        yield from (train(folder, experiment, rows) for experiment in wanted)
    elif wanted:
        (folder / f"{library}.json").write_text(json.dumps(wanted))
        command = [PEERS, Path(__file__).parent / "peers.py", folder, library, rows]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as peers:
            assert peers.stdout is not None
            yield from (json.loads(line) for line in peers.stdout)


def harvest(folder: Path, hook: str, n_rows: int) -> None:
    """Writes rows of the demo's model, shuffled: train.npy, and held_out.npy and reported.npy of other texts."""
    if (folder / "reported.npy").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    passes = list(rows_of("train", hook, n_rows * PASSES // (PASSES - 1)))
    found = {
        "held_out": list(rows_of("held_out", hook, HELD_OUT_ROWS)),
        "train": [rows for index, rows in enumerate(passes) if (index + 1) % PASSES],
        "reported": passes[PASSES - 1 :: PASSES],
    }
    for name, parts in found.items():
        rows = np.concatenate(parts)[: {"held_out": HELD_OUT_ROWS, "train": n_rows}.get(name)]
        np.random.default_rng(0).shuffle(rows)
        np.save(folder / f"{name}.npy", rows)


def rows_of(part: Part, hook: str, wanted: int) -> Iterator[np.ndarray]:
    """At least so many rows of a part of the demo's text, from one forward pass after the other."""
    stream = JobSpec.model_validate(show.spec()).stream
    model = LanguageModel(stream.text_source[0], "cpu")
    excluded = model.excluded_tokens(stream.exclude)
    packed = PackedTokens(stream.text_source[1], part, model, 128, 32, repeat=True)
    count = 0
    for prompts, _ in packed.read(Cursor()):
        rows = model.activations(prompts.tokens, (hook,))[hook].numpy()[keep_mask(prompts.tokens, excluded)]
        yield rows
        count += len(rows)
        if count >= wanted + len(rows):
            return


def ordered(path: Path, seed: int) -> np.ndarray:
    """The rows of a file, in an order that belongs to the seed; as they are with 0."""
    rows = np.load(path, mmap_mode="r")
    return rows[np.random.default_rng(seed).permutation(len(rows))] if seed else rows


def architecture(experiment: dict[str, Any]) -> dict[str, Any]:
    """The architecture's part of our spec."""
    kind, sparsity = experiment["kind"], experiment["sparsity"]
    config: dict[str, Any] = {"kind": kind, "d_sae": experiment["d_sae"]}
    match kind:
        case "topk" | "batchtopk":
            return config | {"k": sparsity}
        case "jumprelu":
            return config | {"l0_coefficient": sparsity, "bandwidth": 0.3}
        case _:
            return config | {"l1_coefficient": sparsity}


def begun(job: JobSpec, block: jax.Array) -> Trainer:
    """The trainer of a job's one SAE, fitted to its first rows."""
    (sae,), rows = job.saes, {"hook_synthetic": block}
    sites, scales, places = sae.sites({"hook_synthetic": block.shape[1]}), start.measured_scales(job, rows), placement(job)
    state = start.drawn_and_fitted(job, sae, sites, scales[sae.name], rows, places)
    return Trainer(job, {sae.name: sites}, {sae.name: state}, scales, places, lambda rows: None)


def train(folder: Path, experiment: dict[str, Any], others: str) -> dict[str, Any]:
    """One of our SAEs on the rows in the seed's order, measured on other ones."""
    seed = experiment.get("seed", 0)
    rows, held_out = ordered(folder / "train.npy", seed), jnp.asarray(np.load(folder / f"{others}.npy"))
    job = JobSpec.model_validate({
        "stream": {
            "synthetic": {"n_features": 1, "d_in": rows.shape[1]}, "tokens": len(rows), "batch": experiment["batch"],
        },
        "saes": [{
            "hook_name": "hook_synthetic", "architecture": architecture(experiment), "seed": seed,
            **SCALED.get(experiment["kind"], {}),
            "optimizer": {
                "lr": experiment["lr"], "lr_warm_up": 0.05, "lr_warm_up_shape": "linear", "lr_decay": 0.2,
                "sparsity_warm_up": 0.1,
            },
        }],
        "log_every": 1 << 30,
    })  # fmt: skip
    (sae,), began = job.saes, time.monotonic()
    trainer: Trainer | None = None
    for first in range(0, len(rows), BLOCK):
        block = jnp.asarray(np.array(rows[first : first + BLOCK]))
        trainer = trainer or begun(job, block)
        for index in range(len(block) // job.stream.batch):
            trainer.step({sae.hook_name: block[index * job.stream.batch : (index + 1) * job.stream.batch]})
    assert trainer is not None
    exported = ARCHITECTURES[sae.architecture.kind].export(sae.architecture, trainer.states[sae.name].parameters)
    exported = jax.block_until_ready(unscaled(exported, trainer.scales[sae.name], trainer.scales[sae.name]))
    seconds = time.monotonic() - began
    acts = exported.encode(held_out)
    return experiment | {
        "library": "ours",
        "l0": float(jnp.mean(jnp.sum(acts > 0, axis=1))),
        "fvu": float(squared_error(held_out, exported.decode(acts)) / variance_of(held_out)),
        "never_fired_share": float(jnp.mean(jnp.sum(acts > 0, axis=0) == 0)),
        "seconds": seconds,
    }


if __name__ == "__main__":
    main()
