"""Norms of rows of activations, where torch has them."""

import numpy as np
import torch
from jaxtyping import Bool, Float


def norms(rows: torch.Tensor) -> torch.Tensor:
    """The norm of each row, in float32."""
    return torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float32)


def kept_norms(rows: torch.Tensor, keep: Bool[np.ndarray, "prompts context_size"]) -> Float[np.ndarray, " kept"]:
    """The norms of the rows at the positions in `keep`."""
    return norms(rows).cpu().numpy()[keep]
