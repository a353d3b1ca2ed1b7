"""Matrix products run in the precision that is stated, and what is not such a product stays float32."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from sae_service.architectures import ARCHITECTURES
from sae_service.kernels.precision import product, products_in
from sae_service.numerics import exact
from sae_service.schema import Precision
from sae_service.spec import JobSpec
from sae_service.spec.precision import of_model, resolved
from sae_service.spec.stream import ModelSpec
from sae_service.training import precision
from sae_service.training.step import TrainState
from tests.planted import fresh, steps
from tests.synthetic_jobs import job

RANDOM = np.random.default_rng(0)
A, B = (jnp.asarray(RANDOM.normal(size=shape), jnp.float32) for shape in ((8, 64), (64, 16)))


def test_factors_are_rounded_to_8_bits_and_sums_are_not() -> None:
    with products_in("bfloat16"):
        found, ones = product(A, B), product(jnp.ones((1, 4096)), jnp.ones((4096, 1)))
    rounded = [np.asarray(part.astype(jnp.bfloat16), np.float64) for part in (A, B)]
    np.testing.assert_allclose(found, rounded[0] @ rounded[1], rtol=1e-5, atol=1e-5)
    assert not np.allclose(found, A @ B, rtol=1e-5, atol=1e-5)
    assert found.dtype == jnp.float32
    assert float(ones[0, 0]) == 4096


def test_gradients_are_such_products_too() -> None:
    with products_in("bfloat16"):
        by_a, by_b = jax.grad(lambda a, b: jnp.sum(jnp.sin(product(a, b))), (0, 1))(A, B)
        upstream = jnp.cos(product(A, B))
        np.testing.assert_array_equal(by_a, product(upstream, B.T))
        np.testing.assert_array_equal(by_b, product(A.T, upstream))


def test_without_rounding_they_are_those_of_jax_and_exact_ones_never_change() -> None:
    with products_in("float32"):
        np.testing.assert_array_equal(product(A, B), A @ B)
    with products_in("bfloat16"):
        np.testing.assert_array_equal(exact(A, B), A @ B)


def stepped(kind: str, wanted: Precision, n_slots: int | None = None) -> TrainState:
    with products_in(wanted):
        return steps(ARCHITECTURES[kind], fresh(ARCHITECTURES[kind]), 0, 5, n_slots=n_slots)


@pytest.mark.parametrize(("kind", "n_slots"), [("topk", None), ("standard", 32)])
def test_steps_in_8_bits_are_others_and_lead_nearby_and_all_that_is_kept_is_float32(kind: str, n_slots: int | None) -> None:
    full, rounded = stepped(kind, "float32", n_slots), stepped(kind, "bfloat16", n_slots)
    change = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), full.parameters, rounded.parameters)
    assert 0 < max(jax.tree.leaves(change)) < 0.1
    assert jax.tree.map(lambda leaf: leaf.dtype, rounded) == jax.tree.map(lambda leaf: leaf.dtype, full)


def test_steps_in_float32_have_the_bytes_of_those_without_a_setting() -> None:
    plain = steps(ARCHITECTURES["standard"], fresh(ARCHITECTURES["standard"]), 0, 5)
    jax.tree.map(np.testing.assert_array_equal, stepped("standard", "float32"), plain)


@pytest.mark.parametrize(
    ("wanted", "on_cpu", "on_gpu"),
    [
        (None, "float32", "tensorfloat32"), ("float32", "float32", "float32"), ("tensorfloat32", "float32", "tensorfloat32"),
        ("bfloat16", "bfloat16", "bfloat16"),
    ],
)  # fmt: skip
def test_what_is_left_out_is_decided_by_the_device(wanted: Precision | None, on_cpu: str, on_gpu: str) -> None:
    assert (resolved(wanted, "cpu"), resolved(wanted, "gpu")) == (on_cpu, on_gpu)


def test_weights_held_in_16_bits_are_multiplied_as_they_are_and_nothing_else_can_be_asked_for() -> None:
    assert of_model(ModelSpec(name="gpt2", dtype="float16"), "cpu") == "float16"
    assert of_model(ModelSpec(name="gpt2", dtype="bfloat16", precision="bfloat16"), "cuda") == "bfloat16"
    with pytest.raises(ValidationError, match="is about weights in float32, and dtype is bfloat16"):
        ModelSpec(name="gpt2", dtype="bfloat16", precision="float32")


def spec(**by_sae: Any) -> JobSpec:
    whole = job(10)
    for sae in whole["saes"]:
        sae["precision"] = by_sae[sae["name"]]
    return JobSpec.model_validate(whole)


def test_a_job_says_what_runs_and_what_the_device_does_not_have() -> None:
    asked = spec(standard="bfloat16", batchtopk="tensorfloat32")
    found = precision.of_job(asked, {"products": "float32", "torch": {"float32_matmul_precision": "highest"}})
    assert found["saes"] == {"standard": "bfloat16", "batchtopk": "float32"}
    assert found["jax"]["bfloat16"] == {"jax_default_matmul_precision": "bfloat16", "preferred_element_type": "float32"}
    assert precision.said(found).startswith(
        "Matrix products: the language model float32, training bfloat16 (standard), training float32 (batchtopk), figures and "
        "files float32. Sums are float32. torch has float32_matmul_precision=highest; JAX has jax_default_matmul_precision="
    )
    assert precision.warnings(asked, found) == [
        "saes[1].precision: tensorfloat32 was asked for, and this device has none; float32 takes its place."
    ]
    assert precision.said(precision.of_job(spec(standard=None, batchtopk=None), None)).startswith(
        "Matrix products: the SAEs' training float32, figures"
    )
