"""Which devices the SAEs of a job live on: each on one of them, or split over all by an axis of its arrays."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, get_args

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from sae_service import hosts
from sae_service.errors import WorkerCrashed
from sae_service.kernels.sharded import AXIS
from sae_service.pytree import PyTree
from sae_service.spec import JobSpec, SAESpec

SPLIT_AXES = {"none": None, "latents": "d_sae", "batch": "batch"}
"""The axis that is split, as the shapes of arrays name it, for each `shard` of a spec."""


@dataclass(frozen=True)
class Place:
    """Where an SAE lives.

    An array is split along the axis that has the name `split` where the class that it belongs to gives its shape, such as
    `W_enc: Float[Array, "d_read d_sae"]`. What has no such axis is whole on every device.

    Attributes:
        mesh: the devices, one axis of them; an abstract one, of devices that are only counted, to plan with.
        split: the name of the axis, None on a single device.
    """

    mesh: Mesh | AbstractMesh
    split: str | None = None

    @property
    def whole(self) -> Sharding:
        """Of what is whole on every device."""
        if isinstance(self.mesh, Mesh) and self.mesh.size == 1:
            return SingleDeviceSharding(self.mesh.devices.item())
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def rows(self) -> Sharding:
        """Of the rows of a batch."""
        return self._of_axes(("batch", "d"))

    @property
    def devices(self) -> tuple[Any, ...]:
        """Its devices, or their numbers where they are only counted."""
        return tuple(self.mesh.devices.flat) if isinstance(self.mesh, Mesh) else tuple(range(self.mesh.size))

    @property
    def here(self) -> "Place":
        """The same on the devices of this host alone."""
        own = [device for device in self.devices if getattr(device, "process_index", 0) == jax.process_index()]
        return self if len(own) == len(self.devices) else Place(mesh_of(own), self.split if len(own) > 1 else None)

    def share(self, axis: str, length: int) -> int:
        """How much of an axis one device has."""
        return length // self.mesh.size if axis == self.split else length

    def of(self, tree: Any) -> Any:
        """The places of a tree's leaves, arrays or shapes."""
        return jax.tree.map(self._of_node, tree, is_leaf=lambda node: isinstance(node, PyTree))

    def put(self, tree: Any) -> Any:
        """The arrays of a tree, one after the other, where they belong."""
        return jax.tree.map(hosts.put, tree, self.of(tree))

    def bytes_on_device(self, tree: Any) -> int:
        """What the leaves of a tree take on each of the devices."""
        leaves, places = jax.tree.leaves(tree), jax.tree.leaves(self.of(tree))
        return sum(
            int(np.prod(place.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf, place in zip(leaves, places, strict=True)
        )

    def _of_node(self, node: Any, names: Mapping[str, str] = MappingProxyType({})) -> Any:
        """The places of a node; `names` are those of a matrix's axes, of which the node is another form (see `moments`)."""
        if not isinstance(node, PyTree):
            return self.whole
        places = {}
        for field in fields(node):
            value, axes = getattr(node, field.name), axes_of(field.type)
            if not field.metadata.get("pytree_node", True):
                continue
            axes = axes and tuple(names.get(name, name) for name in axes)
            if axes is not None and len(axes) == getattr(value, "ndim", None):
                places[field.name] = self._of_axes(axes)
            elif axes is not None and isinstance(value, PyTree):
                places[field.name] = self._of_node(value, dict(zip(("rows", "columns"), axes, strict=True)))
            else:
                places[field.name] = self.of(value)
        return node.replace(**places)

    def _of_axes(self, axes: tuple[str, ...]) -> Sharding:
        if self.split not in axes:
            return self.whole
        return NamedSharding(self.mesh, PartitionSpec(*(AXIS if name == self.split else None for name in axes)))


def axes_of(annotation: Any) -> tuple[str, ...] | None:
    """The names of the axes in the annotation of an array, or None for one of anything else."""
    for kind in (annotation, *get_args(annotation)):
        if hasattr(kind, "dim_str"):
            return tuple(kind.dim_str.split())
    return None


@dataclass(frozen=True)
class Placement:
    """The places of the trees of a job, by SAE."""

    by_sae: dict[str, Place]

    def of(self, sae: str, tree: Any) -> Any:
        """A tree of shapes with the places of its leaves."""
        places = self.by_sae[sae].of(tree)
        return jax.tree.map(lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree, places)

    def put(self, sae: str, tree: Any) -> Any:
        """The arrays of a tree where the SAE lives."""
        return self.by_sae[sae].put(tree)


def placement(job: JobSpec) -> Placement:
    """The SAEs of a job in turn on its GPUs, or on as many devices as there are; those that are split, on all of them.

    Where there are fewer devices than were asked for, one is split over as many of them as divide that number. Where they
    are those of several hosts, an SAE that is not split is trained by each host for itself.

    Raises WorkerCrashed if several hosts have other devices than the worker that took the job counts on.
    """
    devices, own = jax.devices()[: job.gpus], jax.local_devices()[: job.gpus]
    n_shared = max(count for count in range(1, len(devices) + 1) if job.gpus % count == 0)
    if hosts.count() > 1 and n_shared < jax.device_count():
        raise _unlike(job.gpus)

    def place(index: int, sae: SAESpec) -> Place:
        if sae.shard == "none" or n_shared == 1:
            return Place(mesh_of(own[index % len(own) :][:1]))
        return Place(mesh_of(devices[:n_shared]), SPLIT_AXES[sae.shard])

    return Placement({sae.name: place(index, sae) for index, sae in enumerate(job.saes)})


def _unlike(gpus: int) -> WorkerCrashed:
    """What to say where the devices of all hosts are not as many as a job's."""
    counts = Counter(device.process_index for device in jax.devices())
    found = ", ".join(f"host {index} has {counts[index]}" for index in range(hosts.count()))
    hint = f"Give the worker on each host its {gpus / hosts.count():g} devices by --device."
    return WorkerCrashed(f"the job is trained on {gpus} devices of {hosts.count()} hosts, and {found}.", hint=hint)


def shortage(job: JobSpec, found: Placement) -> list[str]:
    """What to warn of where fewer devices train than a job asks for: the result is the same but for rounding, and later."""
    n_devices = len(jax.devices())
    if job.gpus <= n_devices:
        whole = [sae.name for sae in job.saes if sae.shard == "none" and hosts.count() > 1]
        why = f"each of the {hosts.count()} hosts trains it for itself; shard: latents or batch would share the work"
        return [f"shard: {name} is not split, so {why}." for name in whole]
    counts = {sae.name: found.by_sae[sae.name].mesh.size for sae in job.saes if sae.shard != "none"}
    split = "".join(f"; {name} is split over {n}" if n > 1 else f"; {name} is not split" for name, n in counts.items())
    return [f"gpus: {job.gpus} were asked for, and the SAEs share the {n_devices} that there are{split}."]


def mesh_of(devices: list[Any]) -> Mesh:
    """A mesh of these devices along one axis."""
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
