"""What an SAE of very many latents needs, by the number of devices over which they are split: arithmetic, nothing is run.

    python -m tests.benchmarks.wide

Memory is that of the plan by which a job is refused or admitted (`training/memory.py`). Writes results/wide.md.
"""

import argparse
from pathlib import Path
from typing import Any

from jax.sharding import AbstractMesh

from sae_service.architectures import ARCHITECTURES
from sae_service.kernels.sharded import AXIS
from sae_service.spec import JobSpec
from sae_service.training import memory
from sae_service.training.placement import Place, Placement
from sae_service.training.sharded import n_candidates

D_IN, BATCH, K = 2304, 4096, 64
WIDTHS = {"1M": 1 << 20, "16M": 1 << 24}
DEVICES = (1, 8, 16, 32, 64)
RESULT = Path(__file__).parent / "results" / "wide.md"
FLOAT = 4
OPERATIONS = 5 * 2 * BATCH * D_IN * WIDTHS["1M"] / 8
HEAD = f"""# Wide SAEs by arithmetic

Written by `python -m tests.benchmarks.wide` from the plan that admits jobs or refuses them; nothing here was measured. A TopK SAE
(k {K}) on rows of d_in {D_IN}, {BATCH:,} rows a batch, 16 prompts of 128 tokens in an evaluation, `shard: latents`. Without the
language model and the buffer of rows. GiB on each device:

- state: weights, two moments and counters, all split; step: gradients and the batch's latents; evaluation: the SAE and its
  latents, when training has let go.
- host: what writing a checkpoint takes beside, however many devices there are.

| latents | devices | state | step | evaluation | the larger of both phases | host |
|---|---|---|---|---|---|---|
"""
MOVED = """
MiB that each device sends in a step, by a ring: a sum of n bytes over N devices sends 2 n (N - 1) / N, a gathering n (N - 1) / N.
Rows come from the device on which the language model runs, and are not counted. What `shard: batch` would send instead is
one sum of all gradients. Neither depends on how many rows fire.

| latents | devices | candidates of TopK | sum of [batch, d_write] | together | `shard: batch` |
|---|---|---|---|---|---|
"""
TAIL = f"""
A sum of the same size is added for the auxiliary error while latents are dead, with 31 sums of one count a row. BatchTopK
sends 31 counts of the batch in place of candidates, Matryoshka one sum for each prefix, Gated two, JumpReLU no candidates at all.
Over links of 450 GB/s, as an H100's NVLink has in each direction, what latents send takes less than a millisecond. The five
products of a step are {OPERATIONS:.1e} operations on each of 8 devices at 1M latents: 40 ms at 300 Tflop/s. Of 16M latents the
{memory.DENSE_COPIES} arrays of [batch, d_sae] that the plan counts are the largest part; half the batch halves them.
"""


def job(d_sae: int) -> JobSpec:
    """A job of one such SAE."""
    sae = {"hook_name": "hook_synthetic", "name": "wide", "architecture": {"kind": "topk", "d_sae": d_sae, "k": K}}
    stream = {"synthetic": {"n_features": 1, "d_in": D_IN}, "tokens": 1 << 30, "batch": BATCH}
    return JobSpec.model_validate({"stream": stream, "saes": [sae]})


def plan(d_sae: int, n_devices: int) -> memory.MemoryPlan:
    """What it needs on each of so many devices."""
    spec = job(d_sae)
    place = Place(AbstractMesh((n_devices,), (AXIS,)), "d_sae" if n_devices > 1 else None)
    sites = {"wide": spec.saes[0].sites({"hook_synthetic": D_IN})}
    return memory.plan(spec, sites, Placement({"wide": place}), FLOAT * D_IN, {})


def memory_row(label: str, d_sae: int, n_devices: int) -> str:
    """A line of the first table."""
    found = plan(d_sae, n_devices)
    state, step, evaluation = found.training["SAE and optimizer state"], found.training["step"], found.evaluation["evaluation"]
    amounts = (state, step, evaluation, max(state + step, evaluation), found.checkpoint)
    return f"| {label} | {n_devices} | {' | '.join(f'{amount / memory.GIB:,.1f}' for amount in amounts)} |"


def sent(d_sae: int, n_devices: int) -> dict[str, float]:
    """Bytes that a device sends in a step, by purpose."""
    topk: Any = ARCHITECTURES["topk"]
    share = (n_devices - 1) / n_devices
    candidates = n_candidates(topk, job(d_sae).saes[0].architecture)
    assert candidates is not None
    return {
        "candidates": share * FLOAT * BATCH * candidates * n_devices,
        "sum": 2 * share * FLOAT * BATCH * D_IN,
        "gradients": 2 * share * FLOAT * (2 * D_IN * d_sae + d_sae + D_IN),
    }


def sent_row(label: str, d_sae: int, n_devices: int) -> str:
    """A line of the second table."""
    found = sent(d_sae, n_devices)
    amounts = found["candidates"], found["sum"], found["candidates"] + found["sum"], found["gradients"]
    return f"| {label} | {n_devices} | {' | '.join(f'{amount / (1 << 20):,.0f}' for amount in amounts)} |"


def page() -> str:
    """Both tables."""
    cases = [(label, d_sae, n) for label, d_sae in WIDTHS.items() for n in DEVICES]
    moving = [case for case in cases if case[2] > 1]
    return f"{HEAD}{_lines(memory_row, cases)}{MOVED}{_lines(sent_row, moving)}{TAIL}"


def _lines(row: Any, cases: list[tuple[str, int, int]]) -> str:
    return "".join(f"{row(*case)}\n" for case in cases)


def main(arguments: list[str] | None = None) -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.parse_args(arguments).output.write_text(page())


if __name__ == "__main__":
    main()
