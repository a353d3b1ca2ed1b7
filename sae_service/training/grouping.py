"""Which SAEs of a job one call steps, and how.

A rule and not a trial, for the same reason as `kernels.choice`. Its numbers for a CPU are measured
(tests/benchmarks/results/cohorts.md), those for a GPU are not.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax

from sae_service.sae.sites import Sites
from sae_service.spec import JobSpec
from sae_service.training.cohort import Cohort, Way, cohort
from sae_service.training.placement import Place, Placement

LARGEST_LOOPED = 1 << 25
"""Rows times latents times the widths that are read and written, up to which a step on a CPU is short beside its call."""
LARGEST_VECTORISED = 1 << 28
"""The same on a GPU, up to which a product takes about as long as the launch of its kernel: by arithmetic alone."""
MOST_ACTS = 1 << 26
"""Rows times latents of all SAEs that are stepped at once: seven such arrays take 1.9 GB."""


@dataclass(frozen=True)
class Group:
    """SAEs that one call steps, in the job's order. They have one cohort and one place, and differ in their numbers at most."""

    cohort: Cohort
    place: Place
    names: tuple[str, ...]
    way: Way


def groups(job: JobSpec, sites: Mapping[str, Sites], placement: Placement) -> list[Group]:
    """All SAEs of a job, each in one group."""
    equal: dict[tuple[Cohort, Place], list[str]] = {}
    for sae in job.saes:
        place = placement.by_sae[sae.name]
        equal.setdefault((cohort(sae, sites[sae.name], place), place), []).append(sae.name)
    found = list[Group]()
    for (shared, place), names in equal.items():
        way = rule(shared, job.stream.batch, jax.default_backend())
        at_once = max(1, MOST_ACTS // (job.stream.batch * shared.structure.d_sae))
        most = {"alone": 1, "looped": len(names), "vectorised": at_once}[way]
        parts = [tuple(names[first : first + most]) for first in range(0, len(names), most)]
        found += [Group(shared, place, part, way if len(part) > 1 else "alone") for part in parts]
    return found


def rule(shared: Cohort, batch: int, backend: str) -> Way:
    """How the SAEs of a cohort are stepped, if there are several.

    Args:
        backend: JAX's name of the platform.
    """
    work = batch * shared.structure.d_sae * (shared.sites.d_read + shared.sites.d_write)
    if shared.shared is None and backend == "cpu" and work <= LARGEST_LOOPED:
        return "looped"
    if shared.shared is None and backend == "gpu" and work <= LARGEST_VECTORISED:
        return "vectorised"
    return "alone"


def said(found: list[Group]) -> str:
    """By which operations on latents SAEs are stepped, and which of them by one call, in words."""
    by_operations: dict[str, list[str]] = {}
    for group in found:
        slots = group.cohort.n_slots
        by_operations.setdefault("dense" if slots is None else f"sparse with {slots} slots a row", []).extend(group.names)
    operations = "; ".join(f"{used} ({', '.join(names)})" for used, names in by_operations.items())
    together = "; ".join(f"{group.way} ({', '.join(group.names)})" for group in found if group.way != "alone")
    return f"Operations on latents: {operations}. Steps: " + (f"in one call, {together}." if together else "one by one.")
