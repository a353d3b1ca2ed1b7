"""From text to trained SAEs: ours beside SAELens's runners, that of one SAE and that of many, start-up included.

    python -m tests.benchmarks.end_to_end [--saes 1 8 32] [--tokens 500000] [--rounds 3] [--cores 0] [--output FOLDER]

Both train JumpReLU SAEs of width 1024 on the demo's model and text, in batches of 4096 rows, from one forward pass of
transformers that stops early; with several SAEs each has its own sparsity. Every training is a process of its own, and those
of the two take turns on the same cores. Counted are the CPU-seconds of the whole process, from its first import to the SAEs
on disk, its wall time and its largest resident memory; of ours also what loading the model and compiling take. What ours has
compiled is kept for the next job of its kind, so each round has a first job and a second one. Medians over the rounds go into
end_to_end.json and end_to_end.md. The peer needs .venv-peers (make peers).

SAELens's runner measures nothing on held-out text, and ours measures on 4096 tokens.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DEMO = ROOT / "sae_service" / "demo"
PEERS = ROOT / ".venv-peers" / "bin" / "python"
FIRST, AGAIN, PEER = "ours", "ours, compiled before", "sae_lens"
SHAPE = {
    "context_size": 128, "batch": 4096, "prompts": 32, "buffer_rows": 65_536, "layer": 2, "d_in": 128, "d_sae": 1024, "lr": 1e-3,
}  # fmt: skip


def order_of(n_saes: int, tokens: int, threads: int) -> dict[str, Any]:
    """What is to be trained."""
    text = str(DEMO / "text" / "train.jsonl.xz")
    coefficients = [1e-3 * 1.05**index for index in range(n_saes)]
    return SHAPE | {"model": str(DEMO / "model"), "text": text, "tokens": tokens, "threads": threads, "coefficients": coefficients}


def trained(command: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Runs a training. Returns what its process took, and what it says itself. Raises RuntimeError if it fails."""
    with tempfile.TemporaryFile("w+") as said:
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=said, stderr=said, env=os.environ | environment, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read()
    if process.returncode:
        raise RuntimeError(f"{command} failed: {text[-2000:]}")
    own = [json.loads(line.removeprefix("FIGURES ")) for line in text.splitlines() if line.startswith("FIGURES ")]
    taken = {"cpu_s": usage.ru_utime + usage.ru_stime, "wall_s": wall, "peak_mib": usage.ru_maxrss / 1024}
    return taken | (own[0] if own else {})


def round_of(order: dict[str, Any], compiled: Path) -> dict[str, dict[str, float]]:
    """One training by each, ours twice."""
    argument, threads = json.dumps(order), str(order["threads"])
    environment = {
        "OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1",
        "JAX_COMPILATION_CACHE_DIR": str(compiled), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # fmt: skip
    shutil.rmtree(compiled, ignore_errors=True)
    ours = [sys.executable, "-m", "tests.benchmarks.end_to_end_ours", argument]
    found = {FIRST: trained(ours, environment)}
    if PEERS.exists():
        found[PEER] = trained([str(PEERS), str(HERE / "end_to_end_peers.py"), argument], environment)
    return found | {AGAIN: trained(ours, environment)}


def medians(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """The medians, by whose training it is and what was measured."""
    return {
        who: {name: statistics.median(one[who][name] for one in rounds) for name in figures}
        for who, figures in rounds[0].items()
    }  # fmt: skip


def table(results: list[dict[str, Any]]) -> str:
    """A line for each number of SAEs and whose they are, ratios first."""
    head = (
        "SAEs", "whose", "CPU / sae_lens", "wall / sae_lens", "memory / sae_lens", "CPU-s per 1M tokens", "the same per SAE",
        "wall s", "peak MiB", "CPU-s until loaded", "s compiling",
    )  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for result in results:
        for who, figures in result["figures"].items():
            peer = result["figures"].get(PEER)
            ratios = [f"{figures[name] / peer[name]:.2f}" if peer else "" for name in ("cpu_s", "wall_s", "peak_mib")]
            per_million = figures["cpu_s"] * 1e6 / result["tokens"]
            cells = [f"{per_million:.0f}", f"{per_million / result['saes']:.1f}"]
            cells += [f"{figures[name]:.0f}" for name in ("wall_s", "peak_mib")]
            own = [f"{figures[name]:.1f}" if name in figures else "" for name in ("loaded_s", "compiled_s")]
            lines.append("| " + " | ".join([str(result["saes"]), who, *ratios, *cells, *own]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measures, and writes what has been measured so far after each number of SAEs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saes", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, arguments.cores)
    results: list[dict[str, Any]] = []
    for n_saes in arguments.saes:
        order = order_of(n_saes, arguments.tokens, len(arguments.cores))
        with tempfile.TemporaryDirectory() as folder:
            rounds = [round_of(order, Path(folder) / "compiled") for _ in range(arguments.rounds)]
        results.append({"saes": n_saes, "tokens": arguments.tokens, "figures": medians(rounds)})
        (arguments.output / "end_to_end.json").write_text(json.dumps(results, indent=1) + "\n")
        said = f"{arguments.tokens} tokens, {len(arguments.cores)} core(s), medians of {arguments.rounds}."
        (arguments.output / "end_to_end.md").write_text(f"# From text to trained SAEs\n\n{said}\n\n{table(results)}\n")
        print(table(results[-1:]), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
