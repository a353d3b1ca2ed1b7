"""Our steps of one kind of SAE, dense and sparse, one at a time as `step.py` asks for them."""

import json
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_service.architectures import ARCHITECTURES
from sae_service.sae.architecture import Architecture
from sae_service.sae.coder import Coder, centred_bias
from sae_service.sae.sites import at
from sae_service.schema import ArchitectureConfig
from sae_service.training.cohort import compiled_step, slots_of
from sae_service.training.optimizer import schedule
from sae_service.training.start import scale_of
from sae_service.training.step import Numbers, Served, TrainState, begun, scaled

L0, N_STEPS, WARM_UP = 32, 1_000_000, 2
NUMBERS: dict[str, dict[str, Any]] = {
    "topk": {"k": L0}, "batchtopk": {"k": L0}, "matryoshka": {"k": L0}, "jumprelu": {"target_l0": L0},
}  # fmt: skip


def numbers(architecture: Architecture, config: ArchitectureConfig, rows: np.ndarray[Any, Any]) -> Numbers:
    """A long job's, whose learning rate has hardly begun to rise: the L0 stays."""
    norms = np.linalg.norm(rows, axis=1)
    scale = scale_of(architecture.normalization, float((norms**2).mean()), float(norms.mean()), rows.shape[1])
    columns = jnp.full(rows.shape[1], scale)
    found: Any = {name: jnp.float32(value) for name, value in config.numbers().items()}
    given = architecture.optimizer.model_copy(update={"lr_warm_up": N_STEPS // 2})
    return Numbers(found, schedule(given, N_STEPS), columns, columns, jnp.int32(10_000_000))


def with_l0(kind: str, state: TrainState, x: jax.Array, l0: int = L0) -> TrainState:
    """The state with biases or thresholds at which so many latents a row are active."""
    parameters: Any = state.parameters
    coder: Coder = parameters if isinstance(parameters, Coder) else parameters.coder
    z = x @ coder.W_enc + (coder.b_enc if kind == "standard" else centred_bias(coder))
    least = jnp.quantile(z, 1 - l0 / z.shape[1])
    lowered = coder.replace(b_enc=coder.b_enc - least)
    match kind:
        case "jumprelu":
            return state.replace(parameters=parameters.replace(threshold=jnp.full(z.shape[1], least)))
        case "standard":
            return state.replace(parameters=lowered)
        case "gated":
            return state.replace(parameters=parameters.replace(coder=lowered))
        case _:
            return state


def main() -> None:
    """Makes the steps, and takes one for each line that comes in."""
    order = json.loads(sys.argv[1])
    rows, kind, batch = np.load(order["rows"]), order["kind"], order["batch"]
    architecture = ARCHITECTURES[kind]
    config = architecture.config(d_sae=order["d_sae"], **NUMBERS.get(kind, {}))  # pyright: ignore[reportCallIssue]
    given, sites = numbers(architecture, config, rows), at("hook", rows.shape[1])
    batches = [Served((jnp.asarray(rows[start : start + batch]),)) for start in range(0, len(rows), batch)]

    @jax.jit
    def first(key: Any) -> TrainState:
        sample = scaled(batches[0], given)
        parameters = architecture.fit_to_rows(config, architecture.init(config, sites, key), sample)
        return with_l0(kind, begun(architecture, config, sites, parameters), sample.x)

    slots = {"ours": slots_of(architecture, config), "ours, dense": None}
    states = {name: first(jax.random.key(0)) for name in slots}
    taken = dict.fromkeys(slots, 0)

    def step(name: str) -> float:
        served = batches[taken[name] % len(batches)]
        began = time.process_time()
        states[name] = compiled_step(architecture, config.structure(), slots[name], states[name], given, served)
        jax.block_until_ready(states[name])
        taken[name] += 1
        return time.process_time() - began

    for name in [*slots] * WARM_UP:
        step(name)
    print("ANSWER", json.dumps([*slots]), flush=True)  # noqa: T201
    for line in sys.stdin:
        print("ANSWER", step(line.strip()), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
