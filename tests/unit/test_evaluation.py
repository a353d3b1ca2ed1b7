"""The sums that the held-out metrics are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_service.evaluation import outliers
from sae_service.evaluation.on_text import reconstructed
from sae_service.evaluation.tally import Tally
from sae_service.sae.reconstruction import reconstruction, reconstruction_sums
from tests.saes import random_sae

ALL = jnp.ones(500)
NO_LIMIT = jnp.full(1, jnp.inf)


def test_rows_of_half_precision_are_summed_in_single_precision() -> None:
    # Most of a row is the mean of all, as in a residual stream.
    rows = 10 + jax.random.normal(jax.random.key(0), (500, 8))
    sae, x = random_sae("relu", d_in=8), rows.astype(jnp.bfloat16)
    (_, found, _), (_, expected, _) = (reconstructed(sae, x, x, ALL, (8,), NO_LIMIT) for x in (x, x.astype(jnp.float32)))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_rows_of_weight_0_count_nowhere_whatever_is_in_them() -> None:
    sae, rows = random_sae("topk", d_in=8), jax.random.normal(jax.random.key(0), (500, 8))
    weights = (jnp.arange(500) % 3 > 0).astype(jnp.float32)
    _, found, _ = reconstructed(sae, jnp.where(weights[:, None] > 0, rows, jnp.inf), rows, weights, (8,), NO_LIMIT)
    kept = rows[weights > 0]
    _, expected, _ = reconstructed(sae, kept, kept, jnp.ones(len(kept)), (8,), NO_LIMIT)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), found, expected)
    assert found["n_rows"] == len(kept)


def test_rows_beyond_the_limit_are_left_as_they_are_and_out_of_the_sums_but_seen() -> None:
    sae, rows = random_sae("relu", d_in=8), jax.random.normal(jax.random.key(0), (500, 8))
    rows = rows / jnp.linalg.norm(rows, axis=1, keepdims=True) * 2
    is_long = jnp.arange(500) % 100 == 7
    x = jnp.where(is_long[:, None], 50 * rows, rows)
    y_hat, found, norms = reconstructed(sae, x, x, ALL, (8,), jnp.full(1, 20.0))
    np.testing.assert_array_equal(y_hat[is_long], x[is_long])
    _, expected, _ = reconstructed(sae, rows[~is_long], rows[~is_long], jnp.ones(495), (8,), NO_LIMIT)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), found, expected)
    assert outliers.figures(np.asarray(norms)) == {"outlier_share": 0.01, "max_norm_ratio": pytest.approx(50)}


def test_an_sae_that_writes_several_hook_points_has_the_errors_at_each() -> None:
    y, y_hat, acts = (jax.random.normal(jax.random.key(key), (500, 8)) for key in range(3))
    tally = Tally()
    tally.add(reconstruction_sums(y, y_hat, acts, ALL, (3, 5)))
    found = reconstruction(tally.sums, ("early", "late"))
    for name, part in (("early", slice(0, 3)), ("late", slice(3, 8))):
        residual = np.asarray(y - y_hat, np.float64)[:, part]
        deviations = np.asarray(y - jnp.mean(y, axis=0), np.float64)[:, part]
        at_it = found["by_hook_point"][name]
        assert at_it["mse"] == pytest.approx((residual**2).sum(axis=1).mean(), rel=1e-5)
        assert at_it["fvu"] == pytest.approx((residual**2).sum() / (deviations**2).sum(), rel=1e-5)
    assert found["mse"] == pytest.approx(sum(at_it["mse"] for at_it in found["by_hook_point"].values()), rel=1e-5)
    assert "by_hook_point" not in reconstruction(jax.device_get(reconstruction_sums(y, y_hat, acts, ALL, (8,))), ("one",))
