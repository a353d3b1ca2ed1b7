"""How large the matrices are by which attention heads write what they read."""

import numpy as np
from jaxtyping import Float

Heads = Float[np.ndarray, " heads"]


def ov_norms(
    W_V: Float[np.ndarray, "kv_heads d_model d_head"], W_O: Float[np.ndarray, "heads d_head d_model"]
) -> tuple[Heads, Heads]:
    """The Frobenius and the spectral norm of W_OV = W_V W_O of each head, without biases and the norm before.

    Where several heads share their values (grouped-query attention), they are the heads that follow one another.
    Its singular values are those of a product of two small triangles: W_V = Q R, W_O = S^T P^T, and W_OV = Q (R S^T) P^T.
    """
    shared = len(W_O) // len(W_V)
    singular = np.array([
        np.linalg.svd(_triangle(W_V[head // shared]) @ _triangle(of_head.T).T, compute_uv=False) for head, of_head in enumerate(W_O)
    ])  # fmt: skip
    return np.sqrt((singular**2).sum(axis=1)), singular.max(axis=1)


def _triangle(matrix: np.ndarray) -> np.ndarray:
    _, triangle = np.linalg.qr(matrix.astype(np.float64))
    return triangle
