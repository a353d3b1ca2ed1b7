"""Our SAEs beside those of dictionary_learning and SAELens on one and the same file of activations: FVU against L0.

    python tests/benchmarks/quality.py FOLDER [--hooks H ...] [--tokens N] [--lrs LR ...] [--kinds K ...] [--libraries L ...]

All get the same rows in the same order, the same batch, the same share of warm-up and decay. The learning rate is the best
of three for each library, hook point, kind and sparsity, or for standard and gated the best at the first of SPARSITIES.
What has been measured is kept in FOLDER and not measured again. Writes quality.md and quality.png into FOLDER. The peers
need .venv-peers (make test-peers).
"""

import argparse
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_service.activations.model import LanguageModel, keep_mask
from sae_service.activations.tokens import Cursor, PackedTokens
from sae_service.architectures import ARCHITECTURES
from sae_service.demo import show
from sae_service.numerics import squared_error, variance_of
from sae_service.sae import unscaled
from sae_service.spec import JobSpec
from sae_service.training.loop import Trainer, activation_scale, fitted, initial_state
from tests.benchmarks import quality_report

PEERS = Path(__file__).parents[2] / ".venv-peers" / "bin" / "python"
KINDS = ("standard", "gated", "jumprelu", "topk", "batchtopk")
SEARCHED = ("topk", "batchtopk", "jumprelu")
"""The kinds for which every learning rate is tried at each sparsity; for the others at the first one."""
GIVEN_L0 = (32, 16, 64)
SPARSITIES: dict[str, dict[str, tuple[float, ...]]] = {
    "ours": {
        "standard": (1.0, 1.8, 0.6, 0.35, 0.2), "gated": (0.11, 0.2, 0.07, 0.045),
        "jumprelu": (0.18, 0.36, 0.09, 0.055, 0.038, 0.03),
        "topk": GIVEN_L0, "batchtopk": GIVEN_L0,
    },
    "dictionary_learning": {
        "standard": (0.13, 0.26, 0.07, 0.04), "gated": (0.2, 0.4, 0.1, 0.05), "jumprelu": GIVEN_L0, "topk": GIVEN_L0,
        "batchtopk": GIVEN_L0,
    },
    "sae_lens": {
        "standard": (1.0, 2.0, 0.6, 0.3, 0.2), "gated": (1.0, 1.8, 0.5, 0.25), "jumprelu": (0.2, 0.4, 0.12, 0.07, 0.04),
        "topk": GIVEN_L0, "batchtopk": GIVEN_L0,
    },
}  # fmt: skip
"""k, the target L0, or a coefficient on L1 or L0: as many of these as enclose an L0 of 16 to 64."""
SCALED = {"jumprelu": {"normalization": "sqrt_d_in"}}
"""Rows longer than by default, so that a step of Adam moves thresholds and biases by a smaller part of what they are."""
D_SAE, HELD_OUT_ROWS, BLOCK = 1024, 40_000, 1 << 17


def main() -> None:
    """Harvests, trains, compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hooks", nargs="+", default=["blocks.1.hook_resid_post", "blocks.2.hook_resid_post"])
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--lrs", type=float, nargs="+", default=[4e-3, 8e-3, 1.6e-2])
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
    """What a library makes of each kind: every learning rate at each sparsity or at one, the best at the others."""
    log = folder / f"{library}.jsonl"
    known = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    shared = {"batch": arguments.batch, "d_sae": D_SAE, "tokens": arguments.tokens}
    kinds = {kind: SPARSITIES[library][kind] for kind in arguments.kinds}

    def measured(wanted: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        missing = [item for item in wanted if not any(item.items() <= found.items() for found in known)]
        with log.open("a") as file:
            for found in trained(folder, library, missing):
                known.append(found)
                file.write(json.dumps(found) + "\n")
                file.flush()
                yield found

    searched = {kind: sparsities if kind in SEARCHED else sparsities[:1] for kind, sparsities in kinds.items()}
    yield from measured([
        {"kind": kind, "sparsity": sparsity, "lr": lr} | shared
        for kind, sparsities in searched.items() for sparsity in sparsities for lr in arguments.lrs
    ])  # fmt: skip
    rest = []
    for kind, (first, *others) in kinds.items():
        if kind in SEARCHED:
            continue
        tried = [item for item in known if (item["kind"], item["sparsity"]) == (kind, first) and item["lr"] in arguments.lrs]
        lr = min(tried, key=lambda item: item["fvu"] * item["l0"])["lr"]
        rest += [{"kind": kind, "sparsity": sparsity, "lr": lr} | shared for sparsity in others]
    yield from measured(rest)


def trained(folder: Path, library: str, wanted: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The results of experiments, one after the other."""
    if library == "ours":
        yield from (train(folder, experiment) for experiment in wanted)
    elif wanted:
        (folder / f"{library}.json").write_text(json.dumps(wanted))
        command = [PEERS, Path(__file__).parent / "peers.py", folder, library]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as peers:
            assert peers.stdout is not None
            yield from (json.loads(line) for line in peers.stdout)


def harvest(folder: Path, hook: str, n_rows: int) -> None:
    """Writes shuffled rows of the demo's model to train.npy, and held-out rows to held_out.npy, if they are not there."""
    if (folder / "train.npy").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    stream = JobSpec.model_validate(show.spec()).stream
    model = LanguageModel(stream.text_source[0], "cpu")
    excluded = model.excluded_tokens(stream.exclude)
    for part, name, wanted in (("held_out", "held_out", HELD_OUT_ROWS), ("train", "train", n_rows)):
        packed = PackedTokens(stream.text_source[1], part, model.encode, model.bos, 128, 32, repeat=True)  # pyright: ignore[reportArgumentType]
        rows, count = [], 0
        for tokens, _ in packed.read(Cursor()):
            rows.append(model.activations(tokens, (hook,))[hook].numpy()[keep_mask(tokens, excluded)])
            count += len(rows[-1])
            if count >= wanted:
                break
        whole = np.concatenate(rows)[:wanted]
        np.random.default_rng(0).shuffle(whole)
        np.save(folder / f"{name}.npy", whole)


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


def train(folder: Path, experiment: dict[str, Any]) -> dict[str, Any]:
    """One of our SAEs on the rows in their order, measured on the held-out ones."""
    rows, held_out = np.load(folder / "train.npy", mmap_mode="r"), jnp.asarray(np.load(folder / "held_out.npy"))
    job = JobSpec.model_validate({
        "stream": {
            "synthetic": {"n_features": 1, "d_in": rows.shape[1]}, "tokens": len(rows), "batch": experiment["batch"],
        },
        "saes": [{
            "hook_name": "hook_synthetic", "architecture": architecture(experiment), **SCALED.get(experiment["kind"], {}),
            "optimizer": {
                "lr": experiment["lr"], "lr_warm_up": 0.05, "lr_warm_up_shape": "linear", "lr_decay": 0.2,
                "sparsity_warm_up": 0.1,
            },
        }],
        "log_every": 1 << 30,
    })  # fmt: skip
    (sae,), began = job.saes, time.monotonic()
    trainer: Trainer | None = None
    for start in range(0, len(rows), BLOCK):
        block = jnp.asarray(np.array(rows[start : start + BLOCK]))
        if trainer is None:
            scale = activation_scale(sae, block)
            state = fitted(initial_state(job, sae, rows.shape[1]), sae, scale, block)
            trainer = Trainer(job, {sae.name: state}, {sae.name: scale}, lambda rows: None)
        for index in range(len(block) // job.stream.batch):
            trainer.step({sae.hook_name: block[index * job.stream.batch : (index + 1) * job.stream.batch]})
    assert trainer is not None
    exported = ARCHITECTURES[sae.architecture.kind].export(sae.architecture, trainer.states[sae.name].parameters)
    exported = jax.block_until_ready(unscaled(exported, trainer.scales[sae.name]))
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
