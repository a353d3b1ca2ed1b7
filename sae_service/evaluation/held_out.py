"""Held-out rows of any origin, text or synthetic: SAEs are measured on them, any number of times."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from sae_service.sae.inference import InferenceSAE, SAEs

ShouldStop = Callable[[], bool]
Observe = Callable[[InferenceSAE], dict[str, Any]]
"""What to record of an SAE at each look."""


@runtime_checkable
class HeldOut(Protocol):
    """Rows that no SAE was trained on. What does not depend on an SAE is computed once."""

    def evaluate(self, saes: SAEs, should_stop: ShouldStop = ...) -> dict[str, Any]:
        """Metrics of each SAE, by its name. Raises Stopped."""
        ...
