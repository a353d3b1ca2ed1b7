"""Which device each SAE of a job lives on."""

from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Sharding, SingleDeviceSharding

from sae_service.spec import JobSpec


@dataclass(frozen=True)
class Placement:
    """The places of the trees of a job, by SAE: whole SAEs, spread over the devices."""

    by_sae: dict[str, Sharding]

    def of(self, sae: str, tree: Any) -> Any:
        """A tree of shapes with the places of its leaves."""
        place = self.by_sae[sae]
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)

    def put(self, sae: str, tree: Any) -> Any:
        """The arrays of a tree where the SAE lives."""
        return jax.device_put(tree, self.by_sae[sae])


def placement(job: JobSpec) -> Placement:
    """The SAEs of a job in turn on its GPUs, or on as many devices as there are."""
    devices = jax.devices()[: job.gpus]
    return Placement({sae.name: SingleDeviceSharding(devices[index % len(devices)]) for index, sae in enumerate(job.saes)})
