"""What a checkpoint costs training: its wait and its CPU time, as a share of training at one checkpoint a minute.

    python -m tests.benchmarks.checkpoint_cost [--pairs N]

Each pair is a job without checkpoints and the same job with one every few steps, in one process, in turn. A difference
of 2 % would drown in the noise of a shared machine, so there are far more checkpoints than one a minute, and the cost of
one of them is set against 60 s.
"""

import argparse
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from sae_service import pipeline
from sae_service.spec import JobSpec
from sae_service.storage.objects import Storage

SIZES = {"demo (d_in 128, d_sae 1024)": (128, 1024, 1024, 600), "d_in 768, d_sae 16384": (768, 16_384, 256, 60)}
"""d_in, d_sae, batch and steps."""
CHECKPOINTS = 2
"""So few that one is written before the next: a job that waits for the one before has chosen too short a time between them."""


class Reporter:
    """Keeps how long training has waited, when it was last heard of, and the checkpoints."""

    def __init__(self) -> None:
        self.waited_s, self.sizes = 0.0, list[int]()

    def event(self, level: str, message: str) -> None:
        """The job's own account of its waiting."""
        if found := re.match(r"Training waited ([\d.]+) s for checkpoints", message):
            self.waited_s = float(found[1])

    def metrics(self, rows: list[dict[str, Any]]) -> None:
        """Not needed."""

    def checkpoint(self, written: pipeline.Checkpoint) -> None:
        """How large it is."""
        self.sizes.append(sum(int(file["size"]) for file in written.files))


def run(size: tuple[int, int, int, int], every_steps: int) -> tuple[float, float, Reporter]:
    """Wall and CPU seconds of one job."""
    d_in, d_sae, batch, steps = size
    job = JobSpec.model_validate({
        "stream": {"synthetic": {"n_features": d_in, "d_in": d_in}, "tokens": steps * batch, "batch": batch},
        "saes": [{"hook_name": "hook_synthetic", "architecture": {"kind": "standard", "d_sae": d_sae}}],
        "checkpoints": {"every_tokens": every_steps * batch},
        "evaluation": {"tokens": 256},
    })  # fmt: skip
    reporter = Reporter()
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.monotonic(), time.process_time()
        pipeline.run(job, Storage(Path(folder).as_uri()), "jobs/cost", reporter)
        return time.monotonic() - wall, time.process_time() - cpu, reporter


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    arguments = parser.parse_args()
    lines = [
        "| SAE | checkpoint | training waits for one | share of a minute | CPU seconds of one | share of a minute |",
        "|---|---|---|---|---|---|",
    ]
    for name, size in SIZES.items():
        run(size, 1 << 30)
        waits, costs, megabytes = [], [], 0.0
        for _ in range(arguments.pairs):
            _, without, _ = run(size, 1 << 30)
            _, with_them, reporter = run(size, size[3] // (CHECKPOINTS + 1))
            n = len(reporter.sizes) - 1
            waits.append(reporter.waited_s / n)
            costs.append((with_them - without) / n)
            megabytes = reporter.sizes[0] / 1e6
        wait, cost = statistics.median(waits), statistics.median(costs)
        lines.append(f"| {name} | {megabytes:.0f} MB | {wait:.3f} s | {wait / 60:.2%} | {cost:.2f} | {cost / 60:.2%} |")
    print("\n".join(lines))  # noqa: T201


if __name__ == "__main__":
    main()
