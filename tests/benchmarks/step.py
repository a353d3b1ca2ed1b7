"""The training step alone: ours by dense and by sparse operations, beside those of SAELens and dictionary_learning.

    python -m tests.benchmarks.step [--sizes 256,4096,1024 ...] [--kinds topk ...] [--rounds 9] [--cores 0] [--output FOLDER]

A size is d_in, d_sae, rows of a batch. Each library has a process of its own, and its steps take turns with the others' on
the same core and the same rows: a machine that slows down does so for all. What is counted is the CPU-seconds of a step, of
which the median over the rounds is kept. About 32 latents a row are active in ours, as after training; what those of the peers
take does not depend on it. Writes step.json and step.md into the folder.
The peers need .venv-peers (make peers).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
PEERS = HERE.parents[1] / ".venv-peers" / "bin" / "python"
KINDS = ("topk", "batchtopk", "matryoshka", "jumprelu", "standard", "gated")
SIZES = ("256,4096,1024", "512,8192,4096")
BATCHES, FEATURES_PER_ROW = 4, 24
OURS, DENSE = "ours", "ours, dense"


class Contender:
    """A process with a step of one kind of SAE, which it makes when it is told to, and answers with what it took."""

    def __init__(self, command: list[str], order: dict[str, Any]) -> None:
        environment = os.environ | {
            "XLA_FLAGS": f"--xla_cpu_multi_thread_eigen={'true' if order['threads'] > 1 else 'false'}",
            "OMP_NUM_THREADS": str(order["threads"]),
        }
        self.process = subprocess.Popen(
            [*command, json.dumps(order)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.names: list[str] = self._answer()

    def seconds(self, name: str) -> float:
        """CPU-seconds of one step."""
        assert self.process.stdin is not None
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("ANSWER "):
                return json.loads(line.removeprefix("ANSWER "))
        raise RuntimeError(f"{self.process.args} has ended")


def rows(size: tuple[int, int, int], seed: int = 0) -> np.ndarray[Any, Any]:
    """Batches of sums of a few of more directions than there are latents, some of them frequent, of mean norm sqrt(d_in)."""
    d_in, d_sae, batch = size
    random = np.random.default_rng(seed)
    directions = random.normal(size=(2 * d_sae, d_in)).astype(np.float32)
    found = np.zeros((BATCHES * batch, d_in), np.float32)
    for _ in range(FEATURES_PER_ROW):
        chosen = (random.random(len(found)) ** 2 * len(directions)).astype(int)
        found += random.uniform(0.5, 1.5, (len(found), 1)).astype(np.float32) * directions[chosen]
    return found * (d_in**0.5 / np.linalg.norm(found, axis=1).mean())


def measured(kind: str, size: tuple[int, int, int], n_rounds: int, threads: int) -> dict[str, float]:
    """The median CPU-seconds of a step, by whose it is."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "rows.npy", rows(size))
        order = {"rows": str(Path(folder) / "rows.npy"), "kind": kind, "d_sae": size[1], "batch": size[2], "threads": threads}
        contenders = [Contender([sys.executable, "-m", "tests.benchmarks.step_ours"], order)]
        if PEERS.exists():
            contenders.append(Contender([str(PEERS), str(HERE / "step_peers.py")], order))
        found: dict[str, list[float]] = {name: [] for contender in contenders for name in contender.names}
        for _ in range(n_rounds):
            for contender in contenders:
                for name in contender.names:
                    found[name].append(contender.seconds(name))
        for contender in contenders:
            contender.end()
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def table(results: list[dict[str, Any]]) -> str:
    """A line for each size and kind, ratios first."""
    names = (OURS, DENSE, "sae_lens", "dictionary_learning")
    lines = ["| (d_in, d_sae, batch) | kind | ours / better peer | ours / ours, dense | " + " | ".join(names) + " |"]
    lines.append("|" + "---|" * (len(names) + 4))
    for result in results:
        seconds = result["seconds"]
        peers = [seconds[name] for name in names[2:] if name in seconds]
        ratios = [f"{seconds[OURS] / min(peers):.2f}" if peers else "", f"{seconds[OURS] / seconds[DENSE]:.2f}"]
        figures = [f"{seconds[name]:.3f}" if name in seconds else "" for name in names]
        lines.append("| " + " | ".join([str(tuple(result["size"])), result["kind"], *ratios, *figures]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measures, and writes what has been measured so far after each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cores", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, arguments.cores)
    results: list[dict[str, Any]] = []
    for text in arguments.sizes:
        d_in, d_sae, batch = (int(part) for part in text.split(","))
        for kind in arguments.kinds:
            seconds = measured(kind, (d_in, d_sae, batch), arguments.rounds, len(arguments.cores))
            results.append({"size": (d_in, d_sae, batch), "kind": kind, "seconds": seconds})
            (arguments.output / "step.json").write_text(json.dumps(results, indent=1) + "\n")
            head = f"# The training step alone\n\nCPU-seconds, {len(arguments.cores)} core(s), medians of {arguments.rounds}.\n\n"
            (arguments.output / "step.md").write_text(head + table(results) + "\n")
            print(table(results[-1:]).splitlines()[-1], flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
