"""How much memory a job needs, before its first step: on the fullest device, and on the host."""

import ctypes
import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

import jax

from sae_service.errors import OutOfMemory
from sae_service.sae.sites import Sites
from sae_service.spec import JobSpec
from sae_service.training import start
from sae_service.training.placement import Placement

DENSE_COPIES = 7
"""Arrays of [batch, d_sae] that live at once in a step; compiled steps were found to need 3 to 7."""
GIB = 1 << 30
C_LIBRARY = ctypes.CDLL(None)


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by purpose. `device`: while training, on the device with the most SAEs. `evaluation`: there, afterwards.
    `checkpoint`: on the host, while one is written.
    """

    device: dict[str, int]
    evaluation: int
    checkpoint: int

    @property
    def peak(self) -> int:
        """The most that the device has to hold at once."""
        return max(sum(self.device.values()), self.evaluation + self.device["model"])

    def said(self) -> str:
        """The plan in words."""
        parts = ", ".join(f"{name} {readable(amount)}" for name, amount in self.device.items())
        training, evaluation = readable(sum(self.device.values())), readable(self.evaluation)
        return (
            f"Memory: about {training} while training ({parts}), {evaluation} beside the model for the evaluation, and "
            f"{readable(self.checkpoint)} on the host for a checkpoint."
        )

    def check(self, limit: int | None) -> str | None:
        """What to warn of, if the host is the device. Raises OutOfMemory for more than a device has.

        Args:
            limit: bytes of the device's memory, or None where it has none of its own.
        """
        largest = max(self.device, key=lambda name: self.device[name])
        remedy = {
            "states": "Train fewer or narrower SAEs in one job (d_sae), or ask for more gpus.",
            "step": "Lower stream.batch or d_sae.",
            "fills": "Lower stream.buffer_bytes or stream.buffer_rows.",
            "model": "Load the model in another dtype, or take a smaller one.",
            "evaluation": "Lower stream.prompts or d_sae, or leave evaluation.every_tokens out.",
        }[largest]
        if limit is not None and self.peak > limit:
            there = f"the device has {readable(limit)}; {largest} take the most."
            needed = f"the job needs about {readable(self.peak)}, and {there}"
            raise OutOfMemory(needed, param="/saes" if largest in ("states", "step") else "/stream", hint=remedy)
        needed, has = self.peak + self.checkpoint, host_memory()
        if limit is None and needed > has:
            there = f"this machine has {readable(has)}; {largest} take the most."
            return f"the job needs about {readable(needed)}, and {there} {remedy}"
        return None


def plan(job: JobSpec, sites: dict[str, Sites], placement: Placement, row_bytes: int, model_bytes: int) -> MemoryPlan:
    """The plan of a job.

    Args:
        row_bytes: of one row of every hook point.
        model_bytes: the weights of the language model.
    """
    states: Counter[Any] = Counter()
    steps, evaluations = [0], [0]
    for sae in job.saes:
        shapes, at = start.shapes(sae, sites[sae.name]), sites[sae.name]
        states[placement.by_sae[sae.name]] += size_of(shapes)
        parameters, d_sae = size_of(shapes.parameters), sae.architecture.d_sae
        steps.append(parameters + 4 * job.stream.batch * (DENSE_COPIES * d_sae + 4 * (at.d_read + at.d_write)))
        evaluations.append(parameters + 4 * job.stream.prompts * job.stream.context_size * (3 * d_sae + 4 * at.d_write))
    fill = job.stream.batch * job.stream.steps_in_fill(row_bytes) * row_bytes
    device = {"states": max(states.values()), "step": max(steps), "fills": 2 * fill, "model": model_bytes}
    if job.evaluation.every_tokens:
        device["evaluation"] = max(evaluations)
    all_states = sum(states.values())
    return MemoryPlan(device, max(evaluations), all_states + all_states // 3)


def readable(n_bytes: int) -> str:
    """An amount of memory as a person reads it."""
    return f"{n_bytes / GIB:.1f} GiB" if n_bytes >= GIB else f"{n_bytes / (1 << 20):.0f} MiB"


def size_of(tree: Any) -> int:
    """Bytes of all leaves, arrays or shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def give_back() -> None:
    """Returns freed memory of the host to the system, where the C library keeps it: between two phases it is much."""
    if hasattr(C_LIBRARY, "malloc_trim"):
        C_LIBRARY.malloc_trim(0)


def device_limit() -> int | None:
    """Bytes that JAX may take on its first device, or None where it has no memory of its own."""
    stats = jax.devices()[0].memory_stats()
    return stats.get("bytes_limit") if stats else None


def host_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
