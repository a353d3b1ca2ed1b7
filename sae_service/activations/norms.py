"""Norms of rows of activations, where torch has them."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool


def norms(rows: torch.Tensor) -> torch.Tensor:
    """The norm of each row, in float32."""
    return torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float32)


def median_norms(found: Mapping[str, torch.Tensor], keep: Bool[np.ndarray, "prompts context_size"]) -> dict[str, float]:
    """The median norm of the rows at the positions in `keep`, by hook point."""
    kept = torch.from_numpy(keep)
    return {name: float(norms(rows).cpu()[kept].median()) for name, rows in found.items()}
