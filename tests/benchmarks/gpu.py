"""What this machine's device can do, and what share of it our steps, the language model and a whole job take.

    python -m tests.benchmarks.gpu [--small] [--size 2304,65536,8192] [--tokens N] [--output FOLDER]

First its own ceilings: products of matrices in each precision, and copying. Then a training step of each kind, by dense
operations and in each precision; the model's forward pass up to a middle layer, of a model of that width with random weights;
a whole job on that model; and the demo's job, whose figures are known. A share is of the ceiling in the same precision: the
products that cannot be avoided over the time that was taken. Writes gpu.json and gpu.md into the folder.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from sae_service.activations.model import LanguageModel
from sae_service.architectures import ARCHITECTURES
from sae_service.demo import show
from sae_service.kernels.precision import products_in
from sae_service.sae.sites import at
from sae_service.schema import Precision
from sae_service.spec import JobSpec
from sae_service.spec.stream import ModelSpec
from sae_service.training.cohort import Cohort
from sae_service.training.memory import size_of
from sae_service.training.step import Served, TrainState, begun, scaled
from tests.benchmarks import gpu_job, random_model
from tests.benchmarks.step_ours import NUMBERS, numbers, with_l0

PRECISIONS: tuple[Precision, ...] = ("float32", "tensorfloat32", "bfloat16")
PRODUCTS = 5
"""Of [batch, d_in, d_sae] in a dense step: encoding, decoding, and the gradients of both matrices and of the activations."""
PASSES_OF_ADAM = 7
"""Over as many bytes as the parameters have: reads of weights, gradients and two moments, and writes of all but the gradients."""
ROUNDS = 10
SMALL = {"size": (32, 256, 64), "kinds": ("topk",), "precisions": ("float32", "bfloat16"), "side": 256, "layers": 2, "steps": 8}
LARGE = {
    "size": (2304, 65536, 8192), "kinds": ("topk", "batchtopk", "jumprelu"), "precisions": PRECISIONS, "side": 8192, "layers": 26,
    "steps": 200,
}  # fmt: skip


def seconds(call: Callable[[], Any]) -> float:
    """The shortest time of a call, after one that compiles."""
    jax.block_until_ready(call())
    found: list[float] = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        jax.block_until_ready(call())
        found.append(time.perf_counter() - began)
    return min(found)


def ceilings(side: int, precisions: tuple[Precision, ...]) -> dict[str, float]:
    """Operations per second of a product of square matrices, by precision, and bytes per second of a copy."""
    a, b = (jax.random.normal(jax.random.key(seed), (side, side)) for seed in range(2))
    found: dict[str, float] = {}
    for precision in precisions:
        # Rounded beforehand, so that nothing but the product is measured.
        kind = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
        given = a.astype(kind), b.astype(kind)
        with products_in(precision):
            multiplied = jax.jit(partial(jnp.matmul, preferred_element_type=jnp.float32))
            found[precision] = 2 * side**3 / seconds(lambda: multiplied(*given))  # noqa: B023
    more = jax.jit(lambda x: x + 1)
    return found | {"copy": 2 * a.nbytes / seconds(lambda: more(a))}


def step(kind: str, size: tuple[int, int, int], precision: Precision, ceiling: dict[str, float]) -> dict[str, Any]:
    """The time of a step, and its share of the ceiling."""
    d_in, d_sae, batch = size
    architecture, sites = ARCHITECTURES[kind], at("hook", d_in)
    config = architecture.config(d_sae=d_sae, **NUMBERS.get(kind, {}))  # pyright: ignore[reportCallIssue]
    rows = np.random.default_rng(0).standard_normal((batch, d_in), np.float32)
    given, served = numbers(architecture, config, rows), Served((jnp.asarray(rows),))
    cohort = Cohort(architecture, config.structure(), sites, None, precision)

    @jax.jit
    def first(key: Any) -> TrainState:
        sample = scaled(Served((served.read[0][:256],)), given)
        parameters = architecture.fit_to_rows(config, architecture.init(config, sites, key), sample)
        return with_l0(kind, begun(architecture, config, sites, parameters), sample.x)

    state = first(jax.random.key(0))
    n_bytes = size_of(state.parameters)

    def once() -> Any:
        nonlocal state
        state = cohort.step(state, given, served)
        return state

    taken = seconds(once)
    return {
        "what": f"step, {kind}", "precision": precision, "ms": 1e3 * taken, "tokens_per_s": batch / taken,
        "share": PRODUCTS * 2 * batch * d_in * d_sae / taken / ceiling[precision],
        "adam_share_of_time": PASSES_OF_ADAM * n_bytes / ceiling["copy"] / taken,
    }  # fmt: skip


def forward_pass(
    folder: Path, width: int, layer: int, precision: Precision, ceiling: dict[str, float], device: str
) -> dict[str, Any]:
    """The time of the model's pass up to a layer, on 16 prompts of 128 tokens, and its share of the ceiling."""
    model = LanguageModel(ModelSpec(name=str(folder), precision=precision), device)
    tokens = np.random.default_rng(0).integers(0, model.n_vocab, (16, 128), dtype=np.int32)
    hook = f"blocks.{layer}.hook_resid_post"

    def once() -> None:
        model.activations(tokens, (hook,))
        if device == "cuda":
            torch.cuda.synchronize()

    taken = seconds(once)
    return {
        "what": f"model, {layer + 1} layers", "precision": precision, "ms": 1e3 * taken, "tokens_per_s": tokens.size / taken,
        "share": 2 * random_model.n_weights(width, layer + 1) * tokens.size / taken / ceiling[precision],
    }  # fmt: skip


def job_on(folder: Path, layer: int, size: tuple[int, int, int], n_steps: int) -> JobSpec:
    """A job of one TopK SAE on the model in a folder, reading the demo's text."""
    stream = show.spec()["stream"]
    _, d_sae, batch = size
    return JobSpec.model_validate({
        "stream": {
            "model": {"name": str(folder)}, "dataset": stream["dataset"], "tokens": n_steps * batch, "batch": batch,
            "buffer_rows": 4 * batch,
        },
        "saes": [{
            "hook_name": f"blocks.{layer}.hook_resid_post", "architecture": {"kind": "topk", "d_sae": d_sae, "k": 32},
            "optimizer": {"lr_warm_up": 0.05},
        }],
        "evaluation": {"tokens": 4096},
        "log_every": max(1, n_steps // 8),
    })  # fmt: skip


def measured(given: dict[str, Any], tokens: int | None) -> dict[str, Any]:
    """All of it."""
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    size, precisions, layer = given["size"], given["precisions"], given["layers"] // 2
    ceiling = ceilings(given["side"], precisions)
    lines = [step(kind, size, precision, ceiling) for kind in given["kinds"] for precision in precisions]
    with tempfile.TemporaryDirectory() as folder:
        random_model.write(Path(folder), size[0], given["layers"])
        lines += [forward_pass(Path(folder), size[0], layer, precision, ceiling, device) for precision in precisions]
        job = gpu_job.measured(job_on(Path(folder), layer, size, given["steps"]), device)
    found: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "torch": torch.__version__},
        "size": size, "ceilings": ceiling, "lines": lines, "job": job,
    }  # fmt: skip
    if given is SMALL and tokens is None:
        return found
    spec = show.spec()
    spec["stream"]["tokens"] = tokens or spec["stream"]["tokens"]
    return found | {"demo": gpu_job.measured(JobSpec.model_validate(spec), device)}


def table(found: dict[str, Any]) -> str:
    """What was measured, for people."""
    speeds = "\n".join(
        f"| {name} | {value / 1e9:.1f} {'GB/s' if name == 'copy' else 'GFLOP/s'} |" for name, value in found["ceilings"].items()
    )
    formats = {"what": "", "precision": "", "ms": ".2f", "tokens_per_s": ".0f", "share": ".2f", "adam_share_of_time": ".2f"}
    lines = "\n".join(
        "| " + " | ".join(format(line[name], kind) if name in line else "" for name, kind in formats.items()) + " |"
        for line in found["lines"]
    )
    speed = ("stream_tokens_per_s", "steps_tokens_per_s", "job_tokens_per_s")
    names = [*speed, "gpu_busy_share", "torch_peak_gib", "jax_peak_gib"]
    jobs = "\n".join(
        "| " + " | ".join([job, *(f"{found[job][name]:.4g}" if name in found[job] else "" for name in names)]) + " |"
        for job in ("job", "demo") if job in found
    )
    return (
        f"# {found['device']}\n\n(d_in, d_sae, batch) {tuple(found['size'])}; {found['versions']}\n\n"
        f"| ceiling | |\n|---|---|\n{speeds}\n\n"
        "| what | precision | ms | tokens/s | share of the ceiling | Adam's share of the time, at the speed of a copy |\n"
        f"|---|---|---|---|---|---|\n{lines}\n\n"
        f"| whole job | {' | '.join(names)} |\n{'|---' * (len(names) + 1)}|\n{jobs}\n"
    )


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="sizes at which it takes seconds on a CPU")
    parser.add_argument("--size", help="d_in,d_sae,batch")
    parser.add_argument("--tokens", type=int, help="of the demo's job; default: the demo's own, or no such job with --small")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    chosen = parser.parse_args(arguments)
    given = SMALL if chosen.small else LARGE
    if chosen.size:
        given = given | {"size": tuple(int(part) for part in chosen.size.split(","))}
    found = measured(given, chosen.tokens)
    (chosen.output / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    (chosen.output / "gpu.md").write_text(table(found))
    print(table(found))  # noqa: T201


if __name__ == "__main__":
    main()
