"""What every origin of held-out rows can do, text or synthetic: measure SAEs on them, as often as it is asked to."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from sae_service.sae.inference import SAEs

ShouldStop = Callable[[], bool]


@runtime_checkable
class HeldOut(Protocol):
    """Rows that no SAE was trained on. What does not depend on an SAE is computed once."""

    def evaluate(self, saes: SAEs, should_stop: ShouldStop = ...) -> dict[str, Any]:
        """Metrics of each SAE, by its name. Raises Stopped."""
        ...
