"""How much memory a job needs, before its first step: on the fullest device, and on the host."""

import ctypes
import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

import jax

from sae_service import hosts
from sae_service.architectures import ARCHITECTURES
from sae_service.errors import OutOfMemory
from sae_service.sae.sites import Sites
from sae_service.settings import jax_memory_share
from sae_service.spec import JobSpec, fields
from sae_service.training import start
from sae_service.training.grouping import Group, groups
from sae_service.training.placement import Placement

DENSE_COPIES = 7
"""Arrays of [batch, d_sae] that live at once in a step; compiled steps were found to need 3 to 7."""
GIB = 1 << 30
C_LIBRARY = ctypes.CDLL(None)


REMEDIES = {
    "SAE and optimizer state": ("/saes", "Train fewer or narrower SAEs (d_sae), or on more gpus; shard: latents splits one."),
    "part of a state on its way to a checkpoint": ("/saes", "Train fewer or narrower SAEs (d_sae)."),
    "step": ("/saes", "Lower stream.batch or d_sae."),
    "evaluation": ("/stream/prompts", "Lower stream.prompts or d_sae."),
    "buffer": ("/stream", "Lower stream.buffer_bytes or stream.buffer_rows."),
    "model": (fields.MODEL, fields.SMALLER_MODEL),
    "logits": ("/stream/prompts", "Lower stream.prompts or stream.context_size."),
}
"""The field to blame for each purpose, and what to do."""


@dataclass(frozen=True)
class Limits:
    """Bytes of a device's memory that JAX may take, and those that it leaves to torch."""

    jax: int
    torch: int


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by purpose, on the device that holds the most of the SAEs.

    Attributes:
        training: what JAX holds while the SAEs train.
        evaluation: what it holds when they are measured afterwards; their states are gone by then.
        model: what torch holds, for the language model.
        checkpoint: on the host, while one is written.
    """

    training: dict[str, int]
    evaluation: dict[str, int]
    model: dict[str, int]
    checkpoint: int

    @property
    def saes(self) -> dict[str, int]:
        """What JAX holds in the phase in which it needs the most."""
        return max(self.training, self.evaluation, key=_sum)

    def said(self) -> str:
        """The plan in words."""
        parts = ", ".join(f"{name} {readable(amount)}" for name, amount in (self.training | self.model).items())
        return (
            f"Memory: about {readable(_sum(self.training | self.model))} while training ({parts}), "
            f"{readable(_sum(self.evaluation))} for the SAEs' evaluation, and {readable(self.checkpoint)} on the host for a "
            "checkpoint."
        )

    def check(self, limits: Limits | None) -> str | None:
        """What to warn of, if the host is the device. Raises OutOfMemory for more than a device has.

        Args:
            limits: of a device with memory of its own, or None.
        """
        if limits is not None:
            for parts, has, whose in ((self.saes, limits.jax, "JAX"), (self.model, limits.torch, "torch")):
                if _sum(parts) > has:
                    largest, param, remedy = _largest(parts)
                    needed = f"the job needs about {readable(_sum(parts))} for {', '.join(parts)}"
                    there = f"the device has {readable(has)} for {whose}; {largest} takes the most."
                    raise OutOfMemory(f"{needed}, and {there}", param=param, hint=remedy)
            return None
        parts = self.saes | self.model
        needed, has = _sum(parts) + self.checkpoint, host_memory()
        if needed <= has:
            return None
        largest, _, remedy = _largest(parts)
        return f"the job needs about {readable(needed)}, and this machine has {readable(has)}; {largest} takes the most. {remedy}"


def plan(job: JobSpec, sites: dict[str, Sites], placement: Placement, row_bytes: int, model: dict[str, int]) -> MemoryPlan:
    """The plan of a job.

    Args:
        row_bytes: of one row of every hook point.
        model: bytes that the language model needs, by purpose; nothing for synthetic rows.
    """
    states, all_states = Counter[Any](), 0
    steps, evaluations = [0], [0]
    of_sae = {name: group for group in groups(job, sites, placement) for name in group.names}
    for sae in job.saes:
        shapes, at, place = start.shapes(sae, sites[sae.name]), sites[sae.name], placement.by_sae[sae.name]
        all_states, group = all_states + size_of(shapes), of_sae[sae.name]
        states.update(dict.fromkeys(place.devices, place.bytes_on_device(shapes)))
        parameters = place.bytes_on_device(shapes.parameters)
        batch, d_sae = place.share("batch", job.stream.batch), place.share("d_sae", sae.architecture.d_sae)
        step = parameters + 4 * batch * (DENSE_COPIES * d_sae + 4 * (at.d_read + at.d_write))
        steps.append(step if len(group.names) == 1 else _of_group(group, step, size_of(shapes)))
        if ARCHITECTURES[sae.architecture.kind].calibration is not None:
            # The sampled rows, of which one batch at a time is encoded.
            n_rows = batch * min(job.stream.steps_in_sample, job.stream.steps_in_fill(row_bytes))
            row = at.d_read if at.is_autoencoder else at.d_read + at.d_write
            steps.append(parameters + 4 * (n_rows * row + batch * (DENSE_COPIES * d_sae + row)))
        parameters, d_sae = place.here.bytes_on_device(shapes.parameters), place.here.share("d_sae", sae.architecture.d_sae)
        evaluations.append(parameters + 4 * job.stream.prompts * job.stream.context_size * (3 * d_sae + 4 * at.d_write))
    buffer = {"buffer": 2 * job.stream.batch * job.stream.steps_in_fill(row_bytes) * row_bytes}
    training, evaluation = {"SAE and optimizer state": max(states.values()), "step": max(steps)}, {"evaluation": max(evaluations)}
    if hosts.count() > 1:
        training["part of a state on its way to a checkpoint"] = hosts.PIECE_BYTES
    if job.evaluation.every_tokens:
        training |= evaluation
    # Rows of a model are torch's memory, which JAX only looks at.
    training, model = (training, model | buffer) if model else (training | buffer, model)
    return MemoryPlan(training, evaluation, model, all_states + all_states // 3)


def _of_group(group: Group, step: int, state: int) -> int:
    """Bytes for one call that steps several: their states are there twice, as also before, when they are put together."""
    return len(group.names) * state + step * (len(group.names) if group.way == "vectorised" else 1)


def _sum(parts: dict[str, int]) -> int:
    return sum(parts.values())


def _largest(parts: dict[str, int]) -> tuple[str, str, str]:
    """The purpose that takes the most, its field, and what to do."""
    largest = max(parts, key=lambda name: parts[name])
    return (largest, *REMEDIES[largest])


def readable(n_bytes: int) -> str:
    """An amount of memory as a person reads it."""
    return f"{n_bytes / GIB:.1f} GiB" if n_bytes >= GIB else f"{n_bytes / (1 << 20):.0f} MiB"


def size_of(tree: Any) -> int:
    """Bytes of all leaves, arrays or shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def give_back() -> None:
    """Returns freed memory of the host to the system; the C library would keep it."""
    if hasattr(C_LIBRARY, "malloc_trim"):
        C_LIBRARY.malloc_trim(0)


def device_limits() -> Limits | None:
    """The shares of JAX's first device, or None where it has no memory of its own."""
    stats = jax.local_devices()[0].memory_stats()
    if not stats or "bytes_limit" not in stats:
        return None
    share = jax_memory_share()
    return Limits(stats["bytes_limit"], int(stats["bytes_limit"] * (1 - share) / share))


def host_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
