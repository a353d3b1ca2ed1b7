"""What is computed the same for many architectures, against values by hand: schedules, clipping, medians."""


import jax.numpy as jnp
import numpy as np
import pytest

from sae_service.numerics import geometric_median, spread
from sae_service.schema import OptimizerConfig
from sae_service.training import optimizer


def test_the_learning_rate_rises_by_a_cosine_and_falls_in_a_line() -> None:
    config = OptimizerConfig(lr=2.0, lr_warm_up=10, lr_warm_up_shape="cosine", lr_decay=0.2)
    numbers = optimizer.schedule(config, 100)
    found = [float(optimizer.learning_rate(numbers, jnp.int32(step))) / 2 for step in (0, 4, 9, 50, 80, 90, 99)]
    first = 0.1 + 0.9 * (1 - np.cos(np.pi / 10)) / 2
    np.testing.assert_allclose(found, [first, 0.55, 1, 1, 1, 0.5, 0.05], rtol=1e-5)


@pytest.mark.parametrize(("clip_norm", "factor"), [(1.0, 0.2), (10.0, 1.0), (None, 1.0)])
def test_gradients_are_cut_to_a_norm_together(clip_norm: float | None, factor: float) -> None:
    numbers = optimizer.schedule(OptimizerConfig(lr=1.0, beta1=0.9, clip_norm=clip_norm), 100)
    gradients = {"a": jnp.array([3.0]), "b": jnp.array([0.0, -4.0])}
    _, state, norm = optimizer.update(numbers, gradients, optimizer.init(gradients), jnp.int32(50))
    assert float(norm) == pytest.approx(5)
    mu = state.mu  # pyright: ignore[reportAttributeAccessIssue]
    np.testing.assert_allclose(mu["a"], [0.1 * 3 * factor], rtol=1e-5)
    np.testing.assert_allclose(mu["b"], [0, 0.1 * -4 * factor], rtol=1e-5)


def test_the_geometric_median_is_where_most_rows_are_and_not_drawn_away_by_one() -> None:
    rows = jnp.concatenate([jnp.tile(jnp.array([[1.0, 2.0]]), (20, 1)), jnp.array([[1000.0, 2.0]])])
    np.testing.assert_allclose(geometric_median(rows), [1, 2], atol=1e-3)
    corners = jnp.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
    np.testing.assert_allclose(geometric_median(corners), [1, 1], atol=1e-6)


@pytest.mark.parametrize(("n", "expected"), [(3, [0, 4, 8]), (10, list(range(10))), (100, list(range(10)))])
def test_a_sample_is_spread_over_all_rows(n: int, expected: list[int]) -> None:
    assert spread(jnp.arange(10)[:, None] * 1.0, n)[:, 0].tolist() == expected
