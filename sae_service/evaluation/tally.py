"""Sums over a whole evaluation set."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np


@dataclass
class Tally:
    """A tree of sums, in float64 on the host, that batches add to."""

    sums: Any = None

    def add(self, sums: Any) -> None:
        """Counts the sums of one batch, which may lie on the device."""
        one = jax.tree.map(lambda value: np.asarray(value, np.float64), jax.device_get(sums))
        self.sums = one if self.sums is None else jax.tree.map(np.add, self.sums, one)
