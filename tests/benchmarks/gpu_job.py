"""A whole job on this machine's device, and its parts: tokens per second, peak memory, and the figures."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import torch

from sae_service import pipeline
from sae_service.activations.buffer import FillStart
from sae_service.activations.source import Source
from sae_service.activations.stream import ActivationStream, StreamPosition
from sae_service.spec import JobSpec
from sae_service.storage.objects import Storage
from sae_service.training import start
from sae_service.training.loop import Trainer
from sae_service.training.placement import placement


class Silent:
    """A reporter that keeps the last training speed."""

    tokens_per_s = 0.0

    def event(self, level: str, message: str) -> None:
        """Not shown."""

    def metrics(self, rows: list[dict[str, Any]]) -> None:
        """The latest speed."""
        self.tokens_per_s = rows[0]["tokens_per_s"]

    def checkpoint(self, written: pipeline.Checkpoint) -> None:
        """Not shown."""


def measured(job: JobSpec, device: str) -> dict[str, Any]:
    """The job's parts alone, then all of it, and what memory that has taken.

    Start it with the environment of a training process (`settings.child_environment`), so that torch and JAX share the
    device's memory as they do in the service; `make test-gpu` does.
    """
    return {**parts(job, device), **whole(job, device), **memory(device)}


def parts(job: JobSpec, device: str) -> dict[str, float]:
    """Tokens per second of the stream alone, and of the training steps alone, on one fill."""
    source = Source(job, device)
    stream = ActivationStream(job.stream, source.harvest(FillStart()), StreamPosition())
    fills = stream.fills()
    fill = next(fills)
    began = time.monotonic()
    following = next(fills)
    jax.block_until_ready(following.rows)
    stream_speed = len(following.order) / (time.monotonic() - began)
    stream.close()
    sites = {sae.name: sae.sites(source.widths) for sae in job.saes}
    scales, places = start.measured_scales(job, fill.rows), placement(job)
    states = {
        sae.name: start.drawn_and_fitted(job, sae, sites[sae.name], scales[sae.name], fill.rows, places) for sae in job.saes
    }
    trainer = Trainer(job, sites, states, scales, places, lambda rows: None)
    for batch, _ in stream.batches(fill):
        trainer.step(batch)
    jax.block_until_ready(trainer.states)
    return {"stream_tokens_per_s": stream_speed, "steps_tokens_per_s": trainer.tokens_per_s()}


def whole(job: JobSpec, device: str) -> dict[str, Any]:
    """The whole job: its speed and its figures on held-out text."""
    reporter, busy = Silent(), list[float]()
    with tempfile.TemporaryDirectory() as folder, watched(busy):
        final = pipeline.run(job, Storage(Path(folder).as_uri()), "job", reporter, device=device)
    assert final is not None
    metrics = ("l0", "fvu", "ce_loss_recovered", "dead_share")
    figures = {name: {metric: measured[metric] for metric in metrics} for name, measured in final.metrics.items()}
    found = {"job_tokens_per_s": reporter.tokens_per_s, "figures": figures}
    # A quarter of the looks at each end: loading, and the figures.
    middle = busy[len(busy) // 4 : -(len(busy) // 4) or None]
    return found | ({"gpu_busy_share": sum(middle) / len(middle) / 100} if middle else {})


@contextmanager
def watched(busy: list[float]) -> Iterator[None]:
    """Notes twice a second how busy the first GPU is, in percent; nothing where there is none."""
    if shutil.which("nvidia-smi") is None:
        yield
        return
    command = ["nvidia-smi", "--id=0", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=500"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield
        process.terminate()
        found, _ = process.communicate()
    busy.extend(float(line) for line in found.splitlines() if line.strip())


def memory(device: str) -> dict[str, float]:
    """Peak memory on the device in GiB."""
    if device == "cpu":
        return {}
    statistics = jax.devices()[0].memory_stats() or {}
    return {
        "torch_peak_gib": torch.cuda.max_memory_reserved() / 2**30,
        "jax_peak_gib": statistics.get("peak_bytes_in_use", 0) / 2**30,
        "jax_reserved_gib": statistics.get("bytes_limit", 0) / 2**30,
        "device_gib": torch.cuda.get_device_properties(0).total_memory / 2**30,
    }

