"""Trains JumpReLU SAEs from text in a process of its own, for `end_to_end.py`; prints what loading and compiling took.

    python -m tests.benchmarks.end_to_end_ours ORDER

ORDER is JSON; see `end_to_end_peers.py`.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from sae_service import pipeline
from sae_service.spec import JobSpec
from sae_service.storage.objects import Storage


class Timing:
    """Keeps the CPU-seconds at the first event, which says the memory planned: the model is loaded and has been tried."""

    loaded_s: float | None = None

    def event(self, level: str, message: str) -> None:
        """The first one is what counts."""
        self.loaded_s = self.loaded_s or time.process_time()
        print(level, message, flush=True)  # noqa: T201

    def metrics(self, rows: list[dict[str, Any]]) -> None:
        """Printed, so that a training that went wrong can be seen."""
        print(json.dumps(rows[0]), flush=True)  # noqa: T201

    def checkpoint(self, written: pipeline.Checkpoint) -> None:
        """Nothing."""


def spec_of(order: dict[str, Any]) -> JobSpec:
    """The job."""
    hook_name = f"blocks.{order['layer']}.hook_resid_post"
    saes = [
        {
            "name": f"jumprelu_{index}", "hook_name": hook_name, "seed": index, "optimizer": {"lr": order["lr"]},
            "architecture": {
                "kind": "jumprelu", "d_sae": order["d_sae"], "l0_coefficient": coefficient, "bandwidth": 0.05,
                "initial_threshold": 0.05,
            },
        }
        for index, coefficient in enumerate(order["coefficients"])
    ]  # fmt: skip
    stream = {
        "model": {"name": order["model"]}, "dataset": {"path": order["text"]}, "context_size": order["context_size"],
        "tokens": order["tokens"], "batch": order["batch"], "prompts": order["prompts"], "buffer_rows": order["buffer_rows"],
    }  # fmt: skip
    return JobSpec.model_validate({"stream": stream, "saes": saes, "evaluation": {"tokens": 4096}})


def main() -> None:
    """Trains, and writes the SAEs into a folder that is deleted."""
    compiling, timing = [0.0], Timing()

    def note(event: str, seconds: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            compiling[0] += seconds

    jax.monitoring.register_event_duration_secs_listener(note)
    with tempfile.TemporaryDirectory() as folder:
        pipeline.run(spec_of(json.loads(sys.argv[1])), Storage(Path(folder).as_uri()), "jobs/one", timing)
    print("FIGURES " + json.dumps({"loaded_s": timing.loaded_s, "compiled_s": compiling[0]}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
