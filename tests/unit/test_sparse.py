"""The sparse operations equal the dense ones in value and gradient, and say when a row has more latents than slots."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_service.kernels.choice import n_slots
from sae_service.kernels.dense import DENSE
from sae_service.kernels.jump import active
from sae_service.kernels.latents import Latents, SomeLatents
from sae_service.kernels.ops import Ops
from sae_service.kernels.selection import indices_of, kth_largest, least_of_largest
from sae_service.kernels.sparse import sparse

D_READ, D_SAE, D_WRITE, SLOTS = 6, 70, 5, 24


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def weights(batch: int) -> dict[str, jax.Array]:
    random = np.random.default_rng(batch)
    shapes = {
        "x": (batch, D_READ), "W_enc": (D_READ, D_SAE), "b_enc": (D_SAE,), "W_dec": (D_SAE, D_WRITE), "b_dec": (D_WRITE,),
    }  # fmt: skip
    found = {name: jnp.asarray(random.normal(size=shape)) for name, shape in shapes.items()}
    return found | {"b_enc": 0.3 * found["b_enc"] - 3.0, "threshold": jnp.asarray(random.uniform(0.1, 1, D_SAE))}


def relu(ops: Ops, encoder: Any, threshold: Any) -> Latents:
    return ops.encode(*encoder)


def topk(ops: Ops, encoder: Any, threshold: Any) -> Latents:
    return ops.encode_topk(*encoder, jnp.asarray(5.0))


def topk_of_batch(ops: Ops, encoder: Any, threshold: Any) -> Latents:
    return ops.encode_topk_of_batch(*encoder, jnp.asarray(3.5))[0]


def above(ops: Ops, encoder: Any, threshold: Any) -> Latents:
    return ops.encode_above(*encoder, threshold, jnp.asarray(0.8))


ENCODERS = [relu, topk, topk_of_batch, above]
Encode = Callable[[Ops, Any, Any], Latents]


def dense_acts(latents: Latents) -> jax.Array:
    if not isinstance(latents, SomeLatents):
        return latents.acts
    empty = jnp.zeros((len(latents.acts), D_SAE))
    return empty.at[jnp.arange(len(empty))[:, None], latents.indices].add(latents.acts)


def loss(encode: Encode, ops: Ops, given: dict[str, jax.Array]) -> tuple[jax.Array, Latents]:
    """Something that uses all that latents offer, not the same for each latent or row."""
    latents = encode(ops, (given["x"], given["W_enc"], given["b_enc"]), given["threshold"])
    error = jnp.sum(jnp.sin(ops.decode(latents, given["W_dec"]) + given["b_dec"]))
    parts = ops.decode_prefixes(latents, given["W_dec"], (3, 40, D_SAE))
    l0 = jnp.sum(active(latents.z, latents.of(given["threshold"]), jnp.asarray(0.8)), axis=1)
    l0 = l0 if encode is above else 0
    penalty = jnp.sum(jnp.tanh(latents.acts * latents.of(given["threshold"])))
    total = error + jnp.sum(jnp.cos(parts)) + jnp.sum(jnp.square(l0)) + penalty
    return total, latents


@pytest.mark.parametrize(("encode", "batch"), [*((encode, 256) for encode in ENCODERS), (above, 7)])
def test_values_and_gradients_are_those_of_the_dense_operations(encode: Encode, batch: int) -> None:
    def measured(ops: Ops) -> Any:
        return jax.jit(jax.value_and_grad(lambda given: loss(encode, ops, given), has_aux=True))(weights(batch))

    (expected, dense), expected_gradients = measured(DENSE)
    (actual, some), gradients = measured(sparse(SLOTS))
    assert int(dense.most) <= int(some.most) <= SLOTS
    assert float(actual) == pytest.approx(float(expected), rel=1e-12)
    np.testing.assert_allclose(dense_acts(some), dense.acts, atol=1e-12)
    assert some.fired().tolist() == dense.fired().tolist()
    assert int(some.n_active()) == int(dense.n_active()) > batch
    for name, gradient in gradients.items():
        assert jnp.any(gradient != 0), name
        np.testing.assert_allclose(gradient, expected_gradients[name], rtol=1e-12, atol=1e-12 * batch, err_msg=name)


@pytest.mark.parametrize("encode", ENCODERS)
def test_more_latents_than_slots_are_told(encode: Encode) -> None:
    given = weights(32)
    latents = encode(sparse(3), (given["x"], given["W_enc"], given["b_enc"]), given["threshold"])
    assert int(latents.most) > 3
    assert jnp.all(jnp.isfinite(latents.acts))


@pytest.mark.parametrize(("d_sae", "k"), [(1024, 32), (4096, 32), (4608, 128), (9216, 256), (18432, 512)])
def test_rows_that_all_have_k_find_room_in_their_slots(d_sae: int, k: int) -> None:
    slots = n_slots(k, d_sae, "cpu", is_even=True)
    assert slots is not None
    x = jax.random.normal(jax.random.key(0), (8, 16))
    W_enc = jax.random.normal(jax.random.key(1), (16, d_sae))
    assert int(jax.jit(sparse(slots).encode_topk)(x, W_enc, jnp.zeros(d_sae), k).most) <= slots


def test_equal_latents_at_the_border_are_all_kept() -> None:
    z = jnp.asarray([[3.0, 1.0, 2.0, 2.0, 2.0, 0.0]])
    for ops in (DENSE, sparse(5)):
        latents = ops.encode_topk(z, jnp.eye(6), jnp.zeros(6), 2)
        assert sorted(latents.acts[latents.acts > 0].tolist()) == [2, 2, 2, 3]


@pytest.mark.parametrize("width", [1, 5, 31, 32, 33, 100])
def test_the_indices_of_a_mask_are_found_wherever_they_are(width: int) -> None:
    mask = np.random.default_rng(width).uniform(size=(40, width)) < 0.3
    mask[0], mask[1] = False, True
    indices, counts = indices_of(jnp.asarray(mask), 40)
    assert counts.tolist() == mask.sum(axis=1).tolist()
    for row in range(1, 40):
        if counts[row] <= 40:
            assert sorted(indices[row, : int(counts[row])].tolist()) == np.flatnonzero(mask[row]).tolist()


@pytest.mark.parametrize("width", [3, 64, 1000])
def test_no_value_among_the_largest_is_below_the_least_of_them(width: int) -> None:
    values = jax.random.uniform(jax.random.key(width), (16, width)) ** 4
    least = least_of_largest(values, 3, 8)
    assert jnp.all(least[:, 0] <= kth_largest(values, 3))
    assert jnp.all(jnp.sum(values >= least, axis=1) < 12)
    assert least_of_largest(values, 48, 8, over_batch=True) <= kth_largest(values.ravel(), 48)


def test_blocks_of_rows_have_the_kth_largest_of_each_row() -> None:
    values = jax.random.uniform(jax.random.key(0), (24, 40))
    assert jnp.array_equal(kth_largest(values, 7), jnp.sort(values, axis=1)[:, -7])
