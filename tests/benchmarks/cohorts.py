"""Equal SAEs stepped one by one, by one program that loops over them, and by one that is vectorised over them.

    python -m tests.benchmarks.cohorts [--sizes 64,256,256 ...] [--counts 1 8 32 64] [--rounds 5] [--output FOLDER]

A size is d_in, d_sae, rows of a batch. What is counted is the CPU-seconds of a step of all of them, and on a GPU the seconds;
the three take turns, and the median over the rounds is kept. Writes cohorts.json and cohorts.md into the folder.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from sae_service.architectures import ARCHITECTURES
from sae_service.sae.architecture import Architecture
from sae_service.sae.sites import at
from sae_service.schema import ArchitectureConfig
from sae_service.training.cohort import compiled_step, slots_of
from sae_service.training.step import Numbers, Served, TrainState, begun, scaled, step
from tests.benchmarks.step import rows
from tests.benchmarks.step_ours import NUMBERS, numbers

HERE = Path(__file__).parent
WAYS = ("one by one", "looped", "vectorised")
Steps = Callable[[], None]


def ways(kind: str, size: tuple[int, int, int], count: int) -> dict[str, Steps]:
    """What steps all SAEs once, for each way, compiled and tried."""
    architecture = ARCHITECTURES[kind]
    config: Any = architecture.config(d_sae=size[1], **NUMBERS.get(kind, {}))
    found = rows(size)
    given, served = numbers(architecture, config, found), Served((jnp.asarray(found[: size[2]]),))
    keys = jax.random.split(jax.random.key(0), count)
    one = slots_of(architecture, config)

    def first(key: Any) -> TrainState:
        fitted = architecture.fit_to_rows(config, architecture.init(config, at("hook", size[0]), key), scaled(served, given))
        return begun(architecture, config, at("hook", size[0]), fitted)

    made = jax.jit(first)
    separate = [made(key) for key in keys]
    return {
        "one by one": one_by_one(architecture, config, one, separate, given, served),
        "looped": together(looped(architecture, config, one, given, served), jax.jit(jax.vmap(first))(keys)),
        "vectorised": together(vectorised(architecture, config, given, served), jax.jit(jax.vmap(first))(keys)),
    }


def one_by_one(
    architecture: Architecture, config: ArchitectureConfig, n_slots: int | None, states: list[TrainState], given: Numbers,
    served: Served,
) -> Steps:  # fmt: skip
    """As jobs do: a call of the compiled step for each."""
    structure = config.structure()

    def take() -> None:
        for index, state in enumerate(states):
            states[index] = compiled_step(architecture, structure, n_slots, state, given, served)
        jax.block_until_ready(states)

    return take


def together(stepped: Callable[[TrainState], TrainState], states: TrainState) -> Steps:
    """One call for all, whose states are stacked."""
    compiled, held = jax.jit(stepped, donate_argnums=0), [states]

    def take() -> None:
        held[0] = jax.block_until_ready(compiled(held[0]))

    return take


def looped(
    architecture: Architecture, config: ArchitectureConfig, n_slots: int | None, given: Numbers, served: Served
) -> Callable[[TrainState], TrainState]:
    """One SAE after the other, within the program."""
    return lambda states: jax.lax.map(lambda state: step(architecture, config.structure(), n_slots, state, given, served), states)


def vectorised(
    architecture: Architecture, config: ArchitectureConfig, given: Numbers, served: Served
) -> Callable[[TrainState], TrainState]:
    """All at once, by dense operations: those for few latents choose within the step, which a vectorised one cannot."""
    return jax.vmap(lambda state: step(architecture, config.structure(), None, state, given, served))


def seconds(take: Steps) -> float:
    """CPU-seconds; of a GPU, seconds."""
    clock = time.process_time if jax.default_backend() == "cpu" else time.monotonic
    began = clock()
    take()
    return clock() - began


def measured(kind: str, size: tuple[int, int, int], count: int, n_rounds: int) -> dict[str, float]:
    """The median of a step of one SAE, by way."""
    made = ways(kind, size, count)
    for take in [*made.values()] * 2:
        take()
    taken: dict[str, list[float]] = {way: [] for way in made}
    for _ in range(n_rounds):
        for way, take in made.items():
            taken[way].append(seconds(take) / count)
    return {way: statistics.median(found) for way, found in taken.items()}


def table(results: list[dict[str, Any]]) -> str:
    """A line for each size, kind and count, ratios first."""
    lines = ["| (d_in, d_sae, batch) | kind | SAEs | looped / one by one | vectorised / one by one | ms a SAE, one by one |"]
    lines.append("|" + "---|" * 6)
    for result in results:
        one, others = result["seconds"][WAYS[0]], [result["seconds"][way] for way in WAYS[1:]]
        ratios = [f"{other / one:.2f}" for other in others]
        what = [str(result["size"]), result["kind"], str(result["count"])]
        lines.append("| " + " | ".join([*what, *ratios, f"{1000 * one:.2f}"]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measures, and writes what has been measured so far."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["64,256,256", "128,1024,1024"])
    parser.add_argument("--kinds", nargs="+", default=["topk", "jumprelu"])
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    for text in arguments.sizes:
        d_in, d_sae, batch = (int(part) for part in text.split(","))
        for kind in arguments.kinds:
            for count in arguments.counts:
                found = measured(kind, (d_in, d_sae, batch), count, arguments.rounds)
                results.append({"size": (d_in, d_sae, batch), "kind": kind, "count": count, "seconds": found})
                (arguments.output / "cohorts.json").write_text(json.dumps(results, indent=1) + "\n")
                head = f"# Equal SAEs in one program\n\n{jax.devices()[0].device_kind}, medians of {arguments.rounds}.\n\n"
                (arguments.output / "cohorts.md").write_text(head + table(results) + "\n")
                print(table(results[-1:]).splitlines()[-1], flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
