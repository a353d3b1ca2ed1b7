"""The sums that the held-out metrics are made of."""

import jax
import jax.numpy as jnp
import numpy as np

from sae_service.evaluation.on_text import reconstructed
from tests.saes import random_sae


def test_rows_of_half_precision_are_summed_in_single_precision() -> None:
    # Most of a row is the mean of all, as in a residual stream.
    rows = 10 + jax.random.normal(jax.random.key(0), (500, 8))
    sae, x = random_sae("relu", d_in=8), rows.astype(jnp.bfloat16)
    (_, found), (_, expected) = reconstructed(sae, x), reconstructed(sae, x.astype(jnp.float32))
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
