"""The dense operations on latents are what they are defined to be, written out here in NumPy and float64."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_service.kernels.dense import DENSE
from sae_service.kernels.latents import Latents

RANDOM = np.random.default_rng(0)
X, W_ENC, B_ENC = RANDOM.normal(size=(9, 5)), RANDOM.normal(size=(5, 12)), RANDOM.normal(scale=0.3, size=12)
W_DEC, THRESHOLD = RANDOM.normal(size=(12, 7)), RANDOM.uniform(0.1, 1, 12)
Z = X @ W_ENC + B_ENC
ENCODER = X, W_ENC, B_ENC


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def are(latents: Latents, acts: np.ndarray) -> None:
    np.testing.assert_allclose(latents.z, Z, atol=1e-12)
    np.testing.assert_allclose(latents.acts, acts, atol=1e-12)
    assert latents.fired().tolist() == (acts > 0).any(axis=0).tolist()
    assert int(latents.n_active()) == (acts > 0).sum()


def test_encode_keeps_what_is_above_zero() -> None:
    are(DENSE.encode(*map(jnp.asarray, ENCODER)), np.maximum(Z, 0))


@pytest.mark.parametrize("k", [1, 3, 11, 12])
def test_encode_topk_keeps_the_largest_of_each_row_that_are_positive(k: int) -> None:
    expected = np.zeros_like(Z)
    for row, z in enumerate(Z):
        largest = np.argsort(z)[-k:]
        expected[row, largest] = np.maximum(z[largest], 0)
    are(DENSE.encode_topk(*map(jnp.asarray, ENCODER), k), expected)


@pytest.mark.parametrize("k", [1, 2.5, 12])
def test_encode_topk_of_batch_keeps_the_largest_of_the_batch_and_says_which_is_the_smallest(k: float) -> None:
    largest = np.sort(Z.ravel())[-round(k * len(Z)) :]
    latents, smallest = DENSE.encode_topk_of_batch(*map(jnp.asarray, ENCODER), k)
    are(latents, np.where(largest[0] <= Z, np.maximum(Z, 0), 0))
    assert float(smallest) == pytest.approx(largest[largest > 0][0])


def test_a_batch_without_a_positive_latent_keeps_none() -> None:
    latents, smallest = DENSE.encode_topk_of_batch(jnp.asarray(X), jnp.asarray(W_ENC), jnp.full(12, -100.0), 3)
    assert not jnp.any(latents.acts)
    assert smallest == 0


def test_encode_above_keeps_what_is_above_its_threshold() -> None:
    latents = DENSE.encode_above(*map(jnp.asarray, ENCODER), jnp.asarray(THRESHOLD), jnp.asarray(0.1))
    are(latents, np.where(Z > THRESHOLD, Z, 0))


def test_decode_sums_the_rows_of_the_decoder() -> None:
    acts = np.maximum(Z, 0)
    expected = sum(acts[:, latent, None] * W_DEC[latent] for latent in range(12))
    np.testing.assert_allclose(DENSE.decode(Latents(jnp.asarray(Z), jnp.asarray(acts)), jnp.asarray(W_DEC)), expected, atol=1e-12)
