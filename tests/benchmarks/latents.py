"""What it costs to look at the latents of a wide SAE, beside a plain loop over them and beside SAEDashboard.

    python -m tests.benchmarks.latents [--d-sae 16384] [--tokens 1000000] [--sae FOLDER] [--peer PYTHON] [--output FOLDER]

A TopK SAE is trained for a moment on the demo's model, or taken from a folder. Then each way of looking at its latents has a
process of its own: a job of this service, `loop` below, and, with the Python of an environment that has sae-dashboard,
latents_peer.py, which looks at a few latents only; its cost for all is extrapolated. The job's results are then read over REST.
Writes latents.json and latents.md into the folder.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import httpx

import sae_service

HERE = Path(__file__).parent
DEMO = Path(sae_service.__file__).parent / "demo"
LAYER, K, WIDTH, BEST = 2, 32, 128, 20
HOOK = f"blocks.{LAYER}.hook_resid_post"
LATENTS_AT_ONCE, N_READ = 128, 50
PEER_LATENTS = 64


def stream(tokens: int, batch: int) -> dict[str, Any]:
    """The demo's model and text."""
    return {
        "model": {"name": str(DEMO / "model")}, "dataset": {"path": str(DEMO / "text"), "held_out_split": "test"},
        "context_size": WIDTH, "tokens": tokens, "batch": batch,
    }  # fmt: skip


def trained(folder: Path, d_sae: int, tokens: int) -> Path:
    """A folder with an SAE that was trained on so many tokens."""
    from sae_service import pipeline
    from sae_service.spec import JobSpec
    from sae_service.storage.objects import Storage
    from tests.benchmarks.recovery import Quiet

    sae = {
        "name": "topk", "hook_name": HOOK, "architecture": {"kind": "topk", "d_sae": d_sae, "k": K},
        "optimizer": {"lr": 1e-3, "lr_warm_up": 0.05, "lr_decay": 0.2},
    }  # fmt: skip
    job = JobSpec.model_validate({"stream": stream(tokens, 2048), "saes": [sae], "evaluation": {"tokens": 16_384}})
    final = pipeline.run(job, Storage(folder.as_uri()), "job", Quiet())
    assert final is not None
    print({name: final.metrics["topk"][name] for name in ("l0", "fvu", "dead_share")})  # noqa: T201
    return folder / final.key / "saes" / "topk"


def spec(sae: Path, tokens: int) -> dict[str, Any]:
    """The job that looks at it."""
    return {
        "kind": "latents", "tokens": tokens, "best": BEST, "passage_tokens": WIDTH, "stream": stream(tokens, 1),
        "folders": [{"path": str(sae), "hook_name": HOOK, "name": "topk"}], "dataset": {"path": str(DEMO / "text")},
    }  # fmt: skip


def ours(asked: dict[str, Any]) -> dict[str, Any]:
    """Carries out a job as a worker's process does. Returns what it has published."""
    from sae_service import kinds
    from sae_service.spec.stored import read
    from sae_service.storage.objects import Storage
    from sae_service.surroundings import Surroundings
    from tests.benchmarks.recovery import Quiet

    class Timed(Quiet):
        """Notes what had been used when the text began to be read."""

        start_cpu_s = 0.0

        def event(self, level: str, message: str) -> None:
            """Waits for the word."""
            if message.startswith("Looking at latents"):
                self.start_cpu_s = used_s()

    reporter = Timed()
    final = kinds.run(read(asked["spec"]), Surroundings(Storage(asked["storage"]), asked["prefix"], reporter))
    assert final is not None
    return asdict(final) | {"start_cpu_s": reporter.start_cpu_s}


def used_s() -> float:
    """CPU-seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def loop(asked: dict[str, Any]) -> dict[str, Any]:
    """The same as somebody may write it for an afternoon: rows, then the active latents of each token, are kept in memory, and
    latents are gone through in chunks. It has the strongest passages, densities, means, histograms, the tokens that are raised
    and lowered, and neighbours by cosine; no passages of quantiles, no latents that fire together, no neurons.
    """
    import numpy as np
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    torch.set_grad_enabled(False)
    model: Any = AutoModelForCausalLM.from_pretrained(DEMO / "model", torch_dtype=torch.float32)
    sae = load_file(Path(asked["sae"]) / "sae_weights.safetensors")
    tokens = torch.from_numpy(np.load(asked["tokens"]))
    start_cpu_s, values, latents = used_s(), [], []
    for prompts in tokens.split(32):
        x = model.transformer(prompts, output_hidden_states=True).hidden_states[LAYER + 1].reshape(-1, 128)
        z = torch.relu((x - sae["b_dec"]) @ sae["W_enc"] + sae["b_enc"])
        value, latent = z.topk(K, dim=1)
        values.append(value * (prompts != 0).reshape(-1, 1))
        latents.append(latent.int())
    values, latents, d_sae = torch.cat(values), torch.cat(latents), sae["W_dec"].shape[0]
    place = torch.arange(len(values)).repeat_interleave(K).reshape(-1, K)
    unembedding = model.transformer.ln_f.weight[:, None] * model.lm_head.weight.T
    units = sae["W_dec"] / sae["W_dec"].norm(dim=1, keepdim=True)
    found: dict[str, list[torch.Tensor]] = {}
    for first in range(0, d_sae, LATENTS_AT_ONCE):
        here = (latents >= first) & (latents < first + LATENTS_AT_ONCE) & (values > 0)
        acts = torch.zeros(LATENTS_AT_ONCE, len(values))
        acts[(latents[here] - first).long(), place[here]] = values[here]
        passages = acts.reshape(LATENTS_AT_ONCE, -1, WIDTH)
        peaks, best = passages.amax(dim=2).topk(BEST, dim=1)
        counts = (acts > 0).sum(dim=1)
        logits = sae["W_dec"][first : first + LATENTS_AT_ONCE] @ unembedding
        near = (units[first : first + LATENTS_AT_ONCE] @ units.T).topk(11, dim=1)
        part = {
            "best": best, "peaks": peaks, "activations": passages[torch.arange(LATENTS_AT_ONCE)[:, None], best], "counts": counts,
            "means": acts.sum(dim=1) / counts.clamp(min=1),
            "histogram": torch.stack([one[one > 0].histc(64) for one in acts]),
            "raised": logits.topk(10, dim=1).indices, "lowered": (-logits).topk(10, dim=1).indices, "nearest": near.indices,
        }  # fmt: skip
        for name, value in part.items():
            found.setdefault(name, []).append(value)
    save_file({name: torch.cat(parts) for name, parts in found.items()}, asked["output"])
    return {"n_bytes": Path(asked["output"]).stat().st_size, "tokens": tokens.numel(), "start_cpu_s": start_cpu_s}


PARTS = {"ours": ours, "loop": loop}


def part(name: str, asked: dict[str, Any]) -> None:
    """Does one part in this process, and prints what it has cost."""
    began = time.monotonic()
    answer = PARTS[name](asked)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cost = {"wall_s": time.monotonic() - began, "cpu_s": used_s(), "peak_mib": peak / 1024}
    print("ANSWER", json.dumps({"answer": answer, **cost}))  # noqa: T201


def in_process(command: list[str], asked: dict[str, Any]) -> dict[str, Any]:
    """What a process says of itself at its end."""
    environment = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # as a worker starts its training process
    ended = subprocess.run([*command, json.dumps(asked)], stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(ended.stdout.splitlines()[-1].removeprefix("ANSWER "))


def of_service(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Submits the job, lets `ours` carry it out, and asks a server for some of its latents. Returns the costs."""
    from sae_service.jobs.attempts import Attempt
    from sae_service.jobs.database import Database
    from sae_service.settings import Settings
    from sae_service.storage.job_folders import job_folder
    from tests.served import served

    settings = Settings(data_dir=folder, allowed_roots=(Path(asked["folders"][0]["path"]), DEMO))
    with served(settings) as address:
        answer = httpx.post(f"http://{address}/v1/jobs", json=asked, timeout=60)
    job_id = answer.raise_for_status().json()["id"]
    # No server meanwhile: it would take an attempt without a worker for a lost one.
    attempt = Attempt(Database(settings.resolved_database_url()), job_id, 1)
    order = {"spec": attempt.claim("here"), "storage": settings.resolved_storage_url(), "prefix": job_folder(job_id)}
    cost = in_process([sys.executable, "-m", "tests.benchmarks.latents", "--part", "ours", "--asked"], order)
    written = cost.pop("answer")
    cost["start_cpu_s"] = written.pop("start_cpu_s")
    written.pop("written_s")
    attempt.commit(written, keep=2)
    with served(settings) as address:
        read = read_over_rest(f"http://{address}/v1/saes/{job_id}.topk")
    return cost | read | {"l0": written["metrics"]["topk"]["l0"], "n_bytes": sum(entry["size"] for entry in written["files"])}


def read_over_rest(url: str) -> dict[str, Any]:
    """How long some latents of an SAE, and a sorted list of them, take, in milliseconds; and on what it was looked at."""
    import numpy as np

    with httpx.Client(timeout=60) as client:

        def timed(path: str, **query: str) -> float:
            began = time.monotonic()
            client.get(f"{url}{path}", params=query).raise_for_status()
            return 1000 * (time.monotonic() - began)

        sae = client.get(url).raise_for_status().json()
        chosen = np.random.default_rng(0).integers(0, sae["d_sae"], N_READ).tolist()
        times = [timed(f"/latents/{latent}") for latent in chosen]
        about = sae["looked_at"]
        return {
            "get_ms": {"first": times[0], "median": median(times[1:]), "largest": max(times[1:])},
            "list_ms": timed("/latents", sort="density", order="desc"),
            "tokens": about["n_prompts"] * about["context_size"],
        }  # fmt: skip


def tokens_of(folder: Path, n_tokens: int) -> Path:
    """The text as rows of tokens, for those who do not read text."""
    import numpy as np

    from sae_service.activations.model import LanguageModel
    from sae_service.activations.tokens import Cursor, PackedTokens
    from sae_service.readable import EVERYWHERE
    from sae_service.spec import StreamSpec

    found = StreamSpec.model_validate(stream(n_tokens, 1))
    model = LanguageModel(found.text_source[0], "cpu")
    dataset = found.text_source[1].model_copy(update={"held_out_split": "train"})
    packed = PackedTokens(dataset, "held_out", model, WIDTH, found.prompts, False, EVERYWHERE)
    rows = np.concatenate([prompts.tokens for prompts, _ in packed.read(Cursor())])[: n_tokens // WIDTH]
    np.save(folder / "tokens.npy", rows.astype(np.int64))
    return folder / "tokens.npy"


def measured(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The cost of each way, told as it is known."""
    sae = options.sae or trained(folder / "trained", options.d_sae, options.trained_tokens)
    (folder / "service").mkdir()
    found = {"ours": told(of_service(folder / "service", spec(sae, options.tokens)))}
    order = {"sae": str(sae), "tokens": str(tokens_of(folder, options.compared_tokens)), "output": str(folder / "loop.safetensors")}
    found["loop"] = told(in_process([sys.executable, "-m", "tests.benchmarks.latents", "--part", "loop", "--asked"], order))
    found["loop"] |= found["loop"].pop("answer")
    if options.peer:
        order |= {"model": str(DEMO / "model"), "layer": LAYER, "n_latents": PEER_LATENTS, "output": str(folder / "peer.html")}
        found["peer"] = told(in_process([options.peer, str(HERE / "latents_peer.py")], order))
    return found


def told(cost: dict[str, Any]) -> dict[str, Any]:
    """Prints it."""
    print(json.dumps(cost), flush=True)  # noqa: T201
    return cost


def table(found: dict[str, Any]) -> str:
    """The costs, as a page."""
    ours, d_sae = found["ours"], found["d_sae"]
    lines = [
        f"# Looking at the {d_sae:,} latents of an SAE", "",
        f"A TopK SAE (L0 {ours['l0']:.0f}) on the demo's model, {found['cpus']} cores; passages of {WIDTH} tokens. The last",
        "column is for all latents on a million tokens, extrapolated from what was done after the start, each latent and token",
        "alike. `python -m tests.benchmarks.latents --peer PYTHON` measures it anew, and says what the loop has not.", "",
        "| | latents | tokens | CPU-s | wall s | peak MiB | MB on disk | CPU-s for all |", "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, way in (("ours", "this service"), ("loop", "a plain loop"), ("peer", "SAEDashboard")):
        if cost := found.get(name):
            n_latents, start = cost.get("n_latents", d_sae), cost["start_cpu_s"]
            for_all = start + (cost["cpu_s"] - start) * 1e6 / cost["tokens"] * d_sae / n_latents
            figures = cost["cpu_s"], cost["wall_s"], cost["peak_mib"], cost["n_bytes"] / 1e6, for_all
            lines.append(f"| {way} | {n_latents:,} | {cost['tokens']:,} | {' | '.join(f'{figure:,.0f}' for figure in figures)} |")
    get, listed = ours["get_ms"], ours["list_ms"]
    lines += [
        "", f"`GET /v1/saes/{{id}}/latents/{{n}}`: {get['median']:.0f} ms in the median of {N_READ}, {get['largest']:.0f} ms at",
        f"most, {get['first']:.0f} ms for the first. The first page of all latents, sorted by density: {listed:.0f} ms.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Measures, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-sae", type=int, default=16_384)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--compared-tokens", type=int, default=131_072, help="Tokens that the others read.")
    parser.add_argument("--trained-tokens", type=int, default=1_000_000)
    parser.add_argument("--sae", type=Path)
    parser.add_argument("--peer", help="The Python of an environment that has sae-dashboard.")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--asked", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        part(options.part, options.asked)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = measured(options, Path(folder)) | {"d_sae": options.d_sae, "cpus": os.cpu_count(), "machine": platform.machine()}
    (options.output / "latents.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.output / "latents.md").write_text(table(found))


if __name__ == "__main__":
    main()
