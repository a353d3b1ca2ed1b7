"""Equal SAEs stepped one by one, by one call that loops over them, and by one that is vectorised over them, as jobs do it.

    python -m tests.benchmarks.cohorts [--sizes 64,256,256 ...] [--counts 1 8 32 64] [--rounds 9] [--cores 0] [--output FOLDER]

A size is d_in, d_sae, rows of a batch. What is counted is the CPU-seconds of a step of all of them, and on a GPU the seconds;
the three take turns, and the median over the rounds is kept. Each of them has taken a few steps before. A sixteenth of the
latents, 32 at most, is active in a row. Writes cohorts.json and cohorts.md into the folder.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp

from sae_service.architectures import ARCHITECTURES
from sae_service.sae.sites import at
from sae_service.training.cohort import Cohort, Way, slots_of
from sae_service.training.grouping import Group, rule
from sae_service.training.placement import Place, mesh_of
from sae_service.training.states import States
from sae_service.training.step import Served, TrainState, begun, scaled
from tests.benchmarks.step import rows
from tests.benchmarks.step_ours import L0, NUMBERS, numbers, with_l0

HERE = Path(__file__).parent
WAYS: tuple[Way, ...] = get_args(Way)
Steps = Callable[[], None]


def cohort_of(kind: str, size: tuple[int, int, int]) -> Cohort:
    """The cohort of SAEs of a kind and a size."""
    architecture = ARCHITECTURES[kind]
    config: Any = architecture.config(d_sae=size[1], **dict.fromkeys(NUMBERS.get(kind, {}), active(size)))
    return Cohort(architecture, config.structure(), at("hook", size[0]), slots_of(architecture, config), "float32")


def active(size: tuple[int, int, int]) -> int:
    """How many latents of a row are to be active."""
    return min(L0, size[1] // 16)


def ways(kind: str, size: tuple[int, int, int], count: int) -> dict[Way, Steps]:
    """What steps all SAEs once, for each way."""
    cohort, found = cohort_of(kind, size), rows(size)
    architecture = cohort.architecture
    config: Any = architecture.config(d_sae=size[1], **dict.fromkeys(NUMBERS.get(kind, {}), active(size)))
    given, served = numbers(architecture, config, found), Served((jnp.asarray(found[: size[2]]),))

    @jax.jit
    def first(key: Any) -> TrainState:
        sample = scaled(served, given)
        fitted = architecture.fit_to_rows(config, architecture.init(config, cohort.sites, key), sample)
        return with_l0(kind, begun(architecture, config, cohort.sites, fitted), sample.x, active(size))

    keys, place = jax.random.split(jax.random.key(0), count), Place(mesh_of(jax.devices()[:1]))
    names = tuple(str(index) for index in range(count))

    def taken(way: Way) -> Steps:
        parts = [(name,) for name in names] if way == "alone" else [names]
        drawn = {name: first(key) for name, key in zip(names, keys, strict=True)}
        states = States([Group(cohort, place, part, way) for part in parts], drawn, dict.fromkeys(names, given))

        def take() -> None:
            for stepped in states.groups:
                stepped.step(served)
            jax.block_until_ready(states)

        return take

    return {way: taken(way) for way in WAYS}


def seconds(take: Steps) -> float:
    """CPU-seconds; of a GPU, seconds."""
    clock = time.process_time if jax.default_backend() == "cpu" else time.monotonic
    began = clock()
    take()
    return clock() - began


def measured(kind: str, size: tuple[int, int, int], count: int, n_rounds: int) -> dict[Way, float]:
    """The median of a step of one SAE, by way."""
    made = ways(kind, size, count)
    for take in [*made.values()] * 2:
        take()
    taken: dict[Way, list[float]] = {way: [] for way in made}
    for _ in range(n_rounds):
        for way, take in made.items():
            taken[way].append(seconds(take) / count)
    return {way: statistics.median(found) for way, found in taken.items()}


def table(results: list[dict[str, Any]]) -> str:
    """A line for each size, kind and count, ratios first."""
    lines = ["| (d_in, d_sae, batch) | kind | SAEs | looped / alone | vectorised / alone | ms a SAE, alone | jobs do it |"]
    lines.append("|" + "---|" * 7)
    for result in results:
        one, others = result["seconds"][WAYS[0]], [result["seconds"][way] for way in WAYS[1:]]
        ratios = [f"{other / one:.2f}" for other in others]
        what = [str(result["size"]), result["kind"], str(result["count"])]
        lines.append("| " + " | ".join([*what, *ratios, f"{1000 * one:.2f}", result["rule"]]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measures, and writes what has been measured so far."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["16,64,64", "64,256,256", "64,512,512"])
    parser.add_argument("--kinds", nargs="+", default=["topk", "jumprelu"])
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cores", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, arguments.cores)
    results: list[dict[str, Any]] = []
    for text in arguments.sizes:
        d_in, d_sae, batch = size = tuple(int(part) for part in text.split(","))
        for kind in arguments.kinds:
            way = rule(cohort_of(kind, (d_in, d_sae, batch)), batch, jax.default_backend())
            for count in arguments.counts:
                found = measured(kind, (d_in, d_sae, batch), count, arguments.rounds)
                what = {"size": size, "kind": kind, "count": count, "rule": way if count > 1 else "alone"}
                results.append(what | {"seconds": found})
                (arguments.output / "cohorts.json").write_text(json.dumps(results, indent=1) + "\n")
                head = f"# Equal SAEs in one call\n\n{jax.devices()[0].device_kind}, medians of {arguments.rounds}.\n\n"
                (arguments.output / "cohorts.md").write_text(head + table(results) + "\n")
                print(table(results[-1:]).splitlines()[-1], flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
