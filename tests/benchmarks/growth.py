"""How the cost of a job grows: with the width of an SAE, the rows of a batch, the number of SAEs, and of hook points.

    python -m tests.benchmarks.growth [--series d_sae ...] [--tokens 65536] [--cores 0] [--output FOLDER]

Each point is two jobs on the demo's model and text, in processes of their own, one of TIMES as many tokens as the other: the
difference of their CPU-seconds is what tokens cost, and the rest is what starting costs. Peak memory is that of the longer one.
Writes growth.json and growth.md into the folder.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import sae_service

HERE = Path(__file__).parent
DEMO = Path(sae_service.__file__).parent / "demo"
TIMES = 4
BASE = {"d_sae": 1024, "batch": 1024, "saes": 1, "hook_points": 1}
SERIES: dict[str, tuple[int, ...]] = {
    "d_sae": (1024, 4096, 16384), "batch": (256, 1024, 4096), "saes": (1, 8, 32, 64), "hook_points": (1, 2, 4),
}  # fmt: skip


def job(point: dict[str, int], n_tokens: int) -> dict[str, Any]:
    """TopK SAEs at a layer, or one at each of several layers."""
    saes = [
        {
            "name": f"sae-{layer}-{index}", "hook_name": f"blocks.{layer}.hook_resid_post",
            "architecture": {"kind": "topk", "d_sae": point["d_sae"], "k": 32}, "optimizer": {"lr": 1e-3}, "seed": index,
        }
        for layer in range(4 - point["hook_points"], 4)
        for index in range(point["saes"])
    ]  # fmt: skip
    return {
        "stream": {
            "model": {"name": str(DEMO / "model")}, "dataset": {"path": str(DEMO / "text"), "held_out_split": "test"},
            "tokens": n_tokens, "batch": point["batch"],
        },
        "saes": saes, "evaluation": {"tokens": 128}, "log_every": 1 << 20,
    }  # fmt: skip


def run(spec: dict[str, Any]) -> None:
    """Trains in this process, and prints its CPU-seconds and its peak memory in MiB."""
    from sae_service import pipeline
    from sae_service.spec import JobSpec
    from sae_service.storage.objects import Storage
    from tests.benchmarks.recovery import Quiet

    with tempfile.TemporaryDirectory() as place:
        pipeline.run(JobSpec.model_validate(spec), Storage(Path(place).as_uri()), "job", Quiet())
    used = resource.getrusage(resource.RUSAGE_SELF)
    print("ANSWER", json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))  # noqa: T201


def measured(point: dict[str, int], n_tokens: int) -> dict[str, float]:
    """CPU-seconds per million tokens, those of starting, and MiB."""
    found: list[tuple[float, float]] = []
    for length in (n_tokens, TIMES * n_tokens):
        command = [sys.executable, "-m", "tests.benchmarks.growth", "--run", json.dumps(job(point, length))]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        found.append(json.loads(output.split("ANSWER", 1)[1]))
    (short, _), (long, mib) = found
    by_token = (long - short) / ((TIMES - 1) * n_tokens)
    return {"cpu_s_per_1M_tokens": by_token * 1e6, "start_cpu_s": short - by_token * n_tokens, "peak_mib": mib}


def table(name: str, results: list[dict[str, Any]]) -> str:
    """A line for each point, with the ratio to the first one in front."""
    lines = [f"| {name} | ratio | CPU-s per 1M tokens | CPU-s of starting | peak MiB |", "|---|---|---|---|---|"]
    for result in results:
        by_token = result["cpu_s_per_1M_tokens"]
        ratio = by_token / results[0]["cpu_s_per_1M_tokens"]
        lines.append(f"| {result[name]} | {ratio:.2f} | {by_token:.1f} | {result['start_cpu_s']:.1f} | {result['peak_mib']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Measures each series, and writes what there is after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--series", nargs="+", choices=SERIES, default=list(SERIES))
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--cores", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    if arguments.run is not None:
        run(arguments.run)
        return
    os.sched_setaffinity(0, arguments.cores)
    results: dict[str, list[dict[str, Any]]] = {}
    head = f"# How the cost of a job grows\n\nTopK, k 32, on the demo's model; {len(arguments.cores)} core(s). Elsewhere: {BASE}.\n"
    for name in arguments.series:
        points = [BASE | {name: value} for value in SERIES[name]]
        results[name] = [point | measured(point, arguments.tokens) for point in points]
        tables = [table(name, found) for name, found in results.items()]
        (arguments.output / "growth.json").write_text(json.dumps(results, indent=1) + "\n")
        (arguments.output / "growth.md").write_text("\n".join([head, *(f"{text}\n" for text in tables)]))
        print(tables[-1], flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
