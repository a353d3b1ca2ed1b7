"""A job's rows live, filling the activation cache, and from it: the rows alone, and the whole job.

    python -m tests.benchmarks.cached [--model FOLDER --hook NAME --context N] [--rows 131072] [--name demo] [--output FOLDER]

The rows are served in the fills that such a job has, without training. The time is that of the wall, and the CPU-seconds of all
threads, which say more on a machine with other processes. What is read was just written, so it comes from the memory of the
system and not from a disk. The whole job trains one TopK SAE of 1024 latents; in its time are the loading of the model, the hashing
of its files and a few held-out tokens.
Adds the model's figures to cached.json, and writes cached.md from all that are in it.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import torch

from sae_service import pipeline
from sae_service.activations.source import Source
from sae_service.activations.stream import ActivationStream, StreamPosition
from sae_service.spec import JobSpec, StreamSpec
from sae_service.storage.cache import ActivationCache
from sae_service.storage.objects import Storage
from tests.conftest import DEMO
from tests.recorder import Recorder

HERE = Path(__file__).parent
MODES = (("live", "off"), ("filling", "fill"), ("cached", "use"))


def main() -> None:
    """Measures one model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="demo")
    parser.add_argument("--model", default=str(DEMO / "model"))
    parser.add_argument("--hook", default="blocks.2.hook_resid_post")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--rows", type=int, default=1 << 17)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = {"hook": arguments.hook, "rows": arguments.rows, "torch_threads": arguments.threads}
    with tempfile.TemporaryDirectory() as folder:
        found |= measured(arguments, Path(folder))
    path = arguments.output / "cached.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known[arguments.name] = found
    path.write_text(json.dumps(known, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(known))


def job(arguments: Any, cache: str) -> JobSpec:
    """The job in one of the modes."""
    return JobSpec.model_validate({
        "stream": {
            "model": {"name": arguments.model}, "dataset": {"path": str(DEMO / "text"), "held_out_split": "test"},
            "context_size": arguments.context, "tokens": arguments.rows, "batch": 1024, "cache": cache,
        },
        "saes": [{"hook_name": arguments.hook, "architecture": {"kind": "topk", "d_sae": 1024, "k": 32}}],
        "evaluation": {"tokens": arguments.context},
        "log_every": arguments.rows // 1024 // 8,
    })  # fmt: skip


def measured(arguments: Any, folder: Path) -> dict[str, Any]:
    """Tokens per second, of the wall and of a core, by what is measured and mode."""
    caches = {kind: ActivationCache(Storage((folder / kind).as_uri()), 1 << 40) for kind in ("rows", "job")}
    found: dict[str, Any] = {"rows_alone": {}, "whole_job": {}}
    # What is compiled is compiled before anything is counted.
    pipeline.run(job(arguments, "off"), Storage((folder / "warm").as_uri()), "job", Recorder())
    for name, mode in MODES:
        spec = job(arguments, mode)
        source = Source(spec, "cpu")
        source.open_cache(caches["rows"], lambda: False)
        found["rows_alone"][name] = rows(source, spec.stream)
    for name, mode in MODES:
        began, storage = spent(), Storage((folder / name).as_uri())
        recorder = Recorder()
        pipeline.run(job(arguments, mode), storage, "job", recorder, cache=caches["job"])
        steps = recorder.rows[-1]["tokens_per_s"]
        found["whole_job"][name] = speeds(began, arguments.rows) | {"steps_tokens_per_s": steps}
    return found


def rows(source: Source, stream: StreamSpec) -> dict[str, float]:
    """The speed of the rows of a stream, from the first to the last."""
    began, position = spent(), StreamPosition()
    served = ActivationStream(stream, source.harvest(position.fill_start), position, row_bytes=source.row_bytes)
    for fill in served.fills():
        jax.block_until_ready(fill.rows)
    served.close()
    source.close(lambda *_: None)
    return speeds(began, stream.tokens)


def spent() -> tuple[float, float]:
    """Seconds of the wall and of the process."""
    return time.monotonic(), time.process_time()


def speeds(began: tuple[float, float], n_rows: int) -> dict[str, float]:
    """Tokens per second since then."""
    wall, core = (now - before for now, before in zip(spent(), began, strict=True))
    return {"tokens_per_s": n_rows / wall, "tokens_per_cpu_s": n_rows / core}


def table(known: dict[str, Any]) -> str:
    """The figures of all models."""
    lines = [
        "# Rows from the activation cache", "",
        "Tokens per second, and per CPU-second of all threads; what is behind a slash is the ratio to live.", "",
        "| model | what | per | live | filling | cached |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for model, figures in known.items():
        for what in ("rows_alone", "whole_job"):
            for measure in ("tokens_per_s", "tokens_per_cpu_s"):
                live = figures[what]["live"][measure]
                cells = [f"{figures[what][name][measure]:,.0f} / {figures[what][name][measure] / live:.2f}" for name, _ in MODES]
                per = "second" if measure == "tokens_per_s" else "CPU-second"
                lines.append(f"| {model}, {figures['hook']} | {what.replace('_', ' ')} | {per} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
