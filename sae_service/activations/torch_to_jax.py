"""Arrays across the border between torch and JAX, without a copy where the two share memory.

A tensor that was handed over belongs to JAX: it *is* the array's memory, and JAX computes later than it returns.
Whoever hands over must never write to the tensor again.
"""

import jax
import torch


def to_jax(tensor: torch.Tensor) -> jax.Array:
    """The tensor as a JAX array on the same device; it must not be written to afterwards."""
    return jax.dlpack.from_dlpack(tensor.detach().contiguous())


def to_torch(array: jax.Array) -> torch.Tensor:
    """The array as a torch tensor on the same device; it must not be written to."""
    return torch.from_dlpack(array)
