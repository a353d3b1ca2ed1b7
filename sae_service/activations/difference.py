"""The difference of two logits at a position, as a function of what a model computes."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from sae_service.activations import final_norm


@dataclass(frozen=True)
class Difference:
    """The logit of the first token minus that of the second.

    Attributes:
        position: after which they are read, from 0.
        direction: with it the difference is the product of the last residual row with the direction: linear, with the scale of
            the final norm frozen in it. None: it is that of the logits themselves.
    """

    position: int
    first: int
    second: int
    direction: Float[np.ndarray, " d_model"] | None = None

    @property
    def watched(self) -> tuple[str, ...]:
        """The hook points whose rows it needs."""
        return () if self.direction is None else (final_norm.SITE,)

    def of(self, logits: torch.Tensor, rows: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The difference in each run."""
        if self.direction is None:
            here = logits[:, self.position].float()
            return here[:, self.first] - here[:, self.second]
        last = rows[final_norm.SITE][:, self.position].float()
        return last @ torch.from_numpy(self.direction).to(last)
