"""Our SAEs beside dictionary_learning's on one and the same file of activations: FVU against L0.

    python tests/benchmarks/quality.py FOLDER [--hooks H ...] [--tokens N] [--lrs LR ...] [--kinds K ...] [--l0 L ...]

Both get the same rows in the same order, the same batch, the same share of warm-up and decay, and the best of the given
learning rates. TopK and BatchTopK are given k, JumpReLU its target L0, the L1 kinds the coefficients in COEFFICIENTS.
Writes quality.jsonl, quality.md and quality.png into FOLDER. The peers need .venv-peers (make test-peers).
"""

import argparse
import json
import subprocess
import time
from itertools import product
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

PEERS = Path(__file__).parents[2] / ".venv-peers" / "bin" / "python"
KINDS = ("standard", "gated", "jumprelu", "topk", "batchtopk")
COEFFICIENTS = {
    "ours": {"standard": {16: 2.2, 32: 1.1, 64: 0.5}, "gated": {16: 0.3, 32: 0.16, 64: 0.08}},
    "dictionary_learning": {"standard": {16: 0.2, 32: 0.1, 64: 0.045}, "gated": {16: 0.3, 32: 0.16, 64: 0.08}},
}
"""About what it takes to come near an L0."""
D_SAE, HELD_OUT_ROWS, BLOCK = 1024, 40_000, 1 << 17


def main() -> None:
    """Harvests, trains, compares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hooks", nargs="+", default=["blocks.1.hook_resid_post", "blocks.2.hook_resid_post"])
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--lrs", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3])
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--l0", type=float, nargs="+", default=[16, 32, 64])
    arguments = parser.parse_args()
    found: list[dict[str, Any]] = []
    for hook in arguments.hooks:
        folder = arguments.folder / hook
        harvest(folder, hook, arguments.tokens)
        (folder / "peers.json").write_text(json.dumps(experiments("dictionary_learning", arguments)))
        with subprocess.Popen([PEERS, Path(__file__).parent / "peers.py", folder], stdout=subprocess.PIPE, text=True) as peers:
            results = [train(folder, experiment) for experiment in experiments("ours", arguments)]
            assert peers.stdout is not None
            results += [json.loads(line) for line in peers.stdout]
        found += [result | {"hook": hook} for result in results]
    (arguments.folder / "quality.jsonl").write_text("".join(json.dumps(item) + "\n" for item in found))
    (arguments.folder / "quality.md").write_text(table(found))
    draw(found, arguments.folder / "quality.png")
    print(table(found))  # noqa: T201


def experiments(library: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Every kind at every sparsity with every learning rate."""
    return [
        {"kind": kind, "sparsity": sparsity, "lr": lr, "batch": arguments.batch, "d_sae": D_SAE}
        for kind in arguments.kinds
        for l0, lr in product(arguments.l0, arguments.lrs)
        for sparsity in [COEFFICIENTS[library].get(kind, {}).get(l0, l0)]
    ]


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
            return config | {"target_l0": sparsity, "l0_coefficient": 1.0, "bandwidth": 0.05, "initial_threshold": 0.05}
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
            "hook_name": "hook_synthetic", "architecture": architecture(experiment),
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


def best(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each hook point, kind, library and sparsity the learning rate with the lowest FVU."""
    chosen: dict[tuple[Any, ...], dict[str, Any]] = {}
    for item in found:
        name = (item["hook"], item["kind"], item["library"], item["sparsity"])
        if name not in chosen or item["fvu"] < chosen[name]["fvu"]:
            chosen[name] = item
    return list(chosen.values())


def table(found: list[dict[str, Any]]) -> str:
    """The best of each, as Markdown."""
    columns = ("hook point", "kind", "library", "sparsity", "lr", "l0", "fvu", "never fired", "s")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for item in sorted(best(found), key=lambda item: (item["hook"], item["kind"], item["l0"])):
        lines.append(
            f"| {item['hook']} | {item['kind']} | {item['library']} | {item['sparsity']:g} | {item['lr']:g} | {item['l0']:.1f} "
            f"| {item['fvu']:.4f} | {item['never_fired_share']:.3f} | {item['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """FVU against L0, one panel for each kind."""
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(item["kind"] for item in found))
    figure = Figure(figsize=(4 * len(kinds), 4), layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False)[0]
    for panel, kind in zip(panels, kinds, strict=True):
        for (library, colour), (hook, line) in product(
            (("ours", "#4477aa"), ("dictionary_learning", "#ee6677")),
            zip(dict.fromkeys(item["hook"] for item in found), ("-", "--", ":", "-."), strict=False),
        ):
            mine = [i for i in best(found) if (i["kind"], i["library"], i["hook"]) == (kind, library, hook)]
            mine.sort(key=lambda item: item["l0"])
            label = f"{library}, {hook.removesuffix('.hook_resid_post')}"
            panel.plot([i["l0"] for i in mine], [i["fvu"] for i in mine], line, marker="o", color=colour, label=label)
        panel.set(title=kind, xlabel="L0", ylabel="FVU", xscale="log", yscale="log")
        panel.grid(alpha=0.3, which="both")
    panels[0].legend(fontsize=7)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
