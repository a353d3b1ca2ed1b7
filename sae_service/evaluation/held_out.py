"""Held-out rows of any origin, text or synthetic: SAEs are measured on them, any number of times."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax

from sae_service.sae.inference import InferenceSAE, SAEs

ShouldStop = Callable[[], bool]
Observe = Callable[[InferenceSAE], dict[str, Any]]
"""What to record of an SAE at each look."""


def on_device(sae: InferenceSAE) -> InferenceSAE:
    """The SAE on the first device, unless it has been split over several."""
    is_split = isinstance(sae.b_dec, jax.Array) and len(sae.b_dec.sharding.device_set) > 1
    return sae if is_split else jax.device_put(sae, jax.local_devices()[0])


@runtime_checkable
class HeldOut(Protocol):
    """Rows that no SAE was trained on. What does not depend on an SAE is computed once."""

    def evaluate(self, saes: SAEs, should_stop: ShouldStop = ...) -> dict[str, Any]:
        """Metrics of each SAE, by its name. Raises Stopped."""
        ...
