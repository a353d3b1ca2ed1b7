"""Transcoders of one MLP beside an SAE on its output, and beside sparsify's on the same rows in the same order.

    python -m tests.benchmarks.transcoders FOLDER [--layer 1] [--tokens 1000000] [--model M --dataset D]

One job trains ours, at three learning rates each; the best of them is reported, for each library. All are measured on the
same held-out text, by the same code. The peer needs .venv-peers (make peers). Writes transcoders.json and
transcoders.md into FOLDER.
"""

import argparse
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sae_service import pipeline
from sae_service.activations.buffer import FillStart
from sae_service.activations.model import LanguageModel
from sae_service.activations.source import Source
from sae_service.activations.stream import ActivationStream, StreamPosition
from sae_service.demo import make_language_model as demo
from sae_service.evaluation.on_text import HeldOutText
from sae_service.formats import FORMATS, folder
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.sites import Sites
from sae_service.spec import JobSpec
from sae_service.storage.objects import Storage

PEERS = Path(__file__).parents[2] / ".venv-peers" / "bin" / "python"
RATES = (0.001, 0.002, 0.004)
SIGNUM_RATES = (0.005, 0.01, 0.02)
"""The library's own choice for this width is .02."""
K, D_SAE, BATCH = 32, 1024, 1024
FIGURES = ("fvu", "ce_loss_recovered", "l0")


class Silent:
    """Says only how far it is."""

    def event(self, level: str, message: str) -> None:
        """Printed."""
        print(level, message)  # noqa: T201

    def metrics(self, rows: list[dict[str, Any]]) -> None:
        """Nothing."""

    def checkpoint(self, written: pipeline.Checkpoint) -> None:
        """Nothing."""


def main() -> None:
    """Trains, measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layer", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--model", default=str(demo.MODEL))
    parser.add_argument("--dataset", default=str(demo.TEXT))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    job = job_of(arguments)
    final = pipeline.run(job, Storage(arguments.folder.resolve().as_uri()), "ours", Silent())
    assert final is not None
    measured = {name: {figure: found[figure] for figure in FIGURES} for name, found in final.metrics.items()}
    if PEERS.exists():
        measured |= of_peers(job, arguments.folder)
    (arguments.folder / "transcoders.json").write_text(json.dumps(measured, indent=1))
    table = "\n".join(lines(measured))
    (arguments.folder / "transcoders.md").write_text(table + "\n")
    print(table)  # noqa: T201


def job_of(arguments: argparse.Namespace) -> JobSpec:
    """The job with all of ours. A name says what it is, and its learning rate."""
    read, written = (f"blocks.{arguments.layer}.{name}" for name in ("ln2.hook_normalized", "hook_mlp_out"))
    places: dict[str, dict[str, Any]] = {
        "sae": {"hook_name": written}, "transcoder": {"hook_name": read, "hook_name_out": written},
        "skip": {"hook_name": read, "hook_name_out": written},
    }  # fmt: skip
    return JobSpec.model_validate({
        "stream": {
            "model": {"name": arguments.model}, "dataset": {"path": arguments.dataset, "held_out_split": "test"},
            "tokens": arguments.tokens, "batch": BATCH,
        },
        "saes": [
            {
                "name": f"ours_{kind}_{place}_{rate}", **hook_points,
                "architecture": {"kind": kind, "d_sae": D_SAE, "k": K, **({"skip": True} if place == "skip" else {})},
                "optimizer": {"lr": rate, "lr_warm_up": 0.05, "lr_decay": 0.2},
            }
            for place, hook_points in places.items()
            for kind in ("batchtopk", "topk")
            for rate in RATES
        ],
    })  # fmt: skip


def of_peers(job: JobSpec, folder: Path) -> dict[str, dict[str, float]]:
    """The figures of sparsify's transcoders, trained on the rows that ours had."""
    source = Source(job, "cpu")
    assert source.model is not None
    sites = job.saes[-1].sites(source.widths)
    for name, hook_point in (("x", sites.reads[0]), ("y", sites.writes[0])):
        np.save(folder / f"{name}.npy", np.concatenate(list(served(job, source, hook_point))))
    experiments = [
        {"name": f"sparsify_{optimizer}_{'skip' if skip else 'transcoder'}_{rate}", "optimizer": optimizer, "lr": rate,
         "skip": skip, "k": K, "d_sae": D_SAE, "batch": BATCH}
        for skip in (False, True) for optimizer, rates in (("signum", SIGNUM_RATES), ("adam", RATES)) for rate in rates
    ]  # fmt: skip
    (folder / "sparsify.json").write_text(json.dumps(experiments))
    subprocess.run([PEERS, Path(__file__).with_name("peer_transcoders.py"), folder], check=True)
    loaded = {str(one["name"]): trained(folder / str(one["name"]), sites) for one in experiments}
    return measured_of(job, source.model, loaded)


def served(job: JobSpec, source: Source, hook_point: str) -> Iterator[np.ndarray]:
    """The batches of one hook point in the order of training."""
    stream = ActivationStream(job.stream, source.harvest(FillStart()), StreamPosition(), row_bytes=source.row_bytes)
    for fill in stream.fills():
        for rows, _ in stream.batches(fill):
            yield np.array(rows[hook_point])
    stream.close()


def trained(path: Path, sites: Sites) -> InferenceSAE:
    """A coder that sparsify has saved, at its hook points."""
    return FORMATS["sparsify"].from_files(folder.read(path, "sparsify")).replace(sites=sites)


def measured_of(job: JobSpec, model: LanguageModel, saes: dict[str, InferenceSAE]) -> dict[str, dict[str, float]]:
    """The figures on held-out text."""
    held_out = HeldOutText(job.stream, job.evaluation.tokens, model)
    found = held_out.evaluate({name: lambda sae=sae: sae for name, sae in saes.items()})
    return {name: {figure: of_one[figure] for figure in FIGURES} for name, of_one in found.items()}


def lines(measured: dict[str, dict[str, float]]) -> list[str]:
    """A table of the best learning rate of each, in Markdown."""
    best: dict[str, str] = {}
    for name in measured:
        what = name.rsplit("_", 1)[0]
        if what not in best or measured[name]["fvu"] < measured[best[what]]["fvu"]:
            best[what] = name
    rows = [[what, name.rsplit("_", 1)[1], *(f"{measured[name][figure]:.4f}" for figure in FIGURES)] for what, name in best.items()]
    head = ["what", "best rate", *FIGURES]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


if __name__ == "__main__":
    main()
