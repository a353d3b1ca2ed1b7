"""What an attempt at a training job knows before it trains."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sae_service import own_latents
from sae_service.activations.source import Source
from sae_service.news import Reporter
from sae_service.sae.sites import Sites
from sae_service.spec import JobSpec
from sae_service.training import memory, start
from sae_service.training.placement import Placement


@dataclass(frozen=True)
class Setting:
    """A job, the source of its rows, where its SAEs are and live, and its precisions."""

    job: JobSpec
    source: Source
    placement: Placement
    products: dict[str, Any]

    @cached_property
    def sites(self) -> dict[str, Sites]:
        """Where each SAE reads and writes."""
        return {sae.name: sae.sites(self.source.widths) for sae in self.job.saes}

    def check_memory(self, reporter: Reporter) -> None:
        """Says what memory the job needs. Raises OutOfMemory if that is more than the device has."""
        wanted = memory.plan(self.job, self.sites, self.placement, self.source.row_bytes, self.source.model_memory)
        reporter.event("info", wanted.said())
        if warning := wanted.check(memory.device_limits()):
            reporter.event("warning", warning)

    def shapes(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The shapes of the states of a checkpoint, and their places."""
        states = {sae.name: self.placement.of(sae.name, start.shapes(sae, self.sites[sae.name])) for sae in self.job.saes}
        return states | own_latents.shapes(values)
