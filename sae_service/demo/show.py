"""The demo: starts the service on this machine, submits `job.yaml` over REST, and shows what comes back."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
import yaml

from sae_service import text_tables
from sae_service.client import Client
from sae_service.errors import ServiceUnavailable
from sae_service.jobs.records import Checkpoint, Job
from sae_service.settings import environment

SPEC = Path(__file__).parent / "job.yaml"
START_WAIT_S = 60
COLOURS = {"standard": "#4477aa", "gated": "#228833", "jumprelu": "#ee6677"}


def main(output: Path) -> int:
    """Trains, downloads to `output` and prints the table. Returns the exit status."""
    output.mkdir(parents=True, exist_ok=True)
    with service(output / "service") as client:
        job = client.submit(spec())
        typer.echo(f"Job {job.id} on {client.url}; the service's data and logs are in {output / 'service'}.")
        ended = text_tables.follow(client.follow(job.id))
        if ended is None or ended.status != "succeeded":
            typer.echo(f"The job has not succeeded: {ended.error if ended else None}", err=True)
            return 1
        client.download(job.id, output)
        final = client.checkpoints(job.id)[0]
    text_tables.show(text_tables.results(ended, final))
    draw(ended, final, output / "pareto.png")
    typer.echo(f"SAEs: {', '.join(str(output / name) for name in final.metrics)}\nPicture: {output / 'pareto.png'}")
    return 0


def spec() -> dict[str, Any]:
    """The demo's job, with the paths of this installation."""
    job = yaml.safe_load(SPEC.read_text())
    job["stream"]["model"]["name"] = str(SPEC.parent / "model")
    job["stream"]["dataset"]["path"] = str(SPEC.parent / "text")
    return job


@contextmanager
def service(data_dir: Path) -> Iterator[Client]:
    """A service of our own on a free port, with its data in `data_dir`; its output goes to a log there."""
    data_dir.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (data_dir / "service.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "workers.serve", "--port", str(port)],
            env=environment({"DATA_DIR": str(data_dir.resolve()), "API_KEY_SHA256": "[]"}), stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        client = Client(f"http://127.0.0.1:{port}")
        _wait(client, process, data_dir / "service.log")
        yield client
    finally:
        process.terminate()
        process.wait()


def _wait(client: Client, process: subprocess.Popen[bytes], log: Path) -> None:
    before = time.monotonic() + START_WAIT_S
    while True:
        try:
            list(client.jobs())
        except ServiceUnavailable:
            if process.poll() is not None or time.monotonic() > before:
                raise ServiceUnavailable(f"the service did not start; {log} says why") from None
            time.sleep(0.2)
        else:
            return


def draw(job: Job, final: Checkpoint, path: Path) -> None:
    """The picture: FVU, and the cross-entropy that is recovered, against L0."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    labels = {"fvu": "FVU (lower is better)", "ce_loss_recovered": "cross-entropy recovered (higher is better)"}
    for panel, (metric, label) in zip(panels, labels.items(), strict=True):
        for sae in job.spec["saes"]:
            measured, kind = final.metrics[sae["name"]], sae["architecture"]["kind"]
            panel.scatter(measured["l0"], measured[metric], s=60, color=COLOURS.get(kind, "#888888"))
            panel.annotate(sae["name"], (measured["l0"], measured[metric]), xytext=(6, 6), textcoords="offset points")
        panel.set(xlabel="L0: active latents per token", ylabel=label)
        panel.margins(x=0.4, y=0.25)
        panel.grid(alpha=0.3)
    hook_names = {sae["hook_name"] for sae in job.spec["saes"]}
    figure.suptitle(f"{', '.join(sorted(hook_names))}, {final.tokens:,} tokens, measured on held-out text")
    figure.savefig(path, dpi=150)
