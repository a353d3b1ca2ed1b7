"""The dense matrix products of training, whose precision is stated: what their factors are rounded to.

The precision is that of JAX's own context, which is part of what a compiled program is kept by. Float32 and tensorfloat32
are what JAX makes of it. With bfloat16 it would leave float32 as it is, or round to tensorfloat32; so factors are rounded here.
Sums, and all that is not such a product, are float32 in any case.
"""

from contextlib import AbstractContextManager

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sae_service.schema import Precision


def products_in(precision: Precision) -> AbstractContextManager[None]:
    """What is traced or called in it has its products in this precision."""
    return jax.default_matmul_precision(precision)


def product(a: Float[Array, "rows inner"], b: Float[Array, "inner columns"]) -> Float[Array, "rows columns"]:
    """a b in the precision of the context, as its gradients are."""
    return _rounded(a, b) if jax.config.jax_default_matmul_precision == "bfloat16" else a @ b  # pyright: ignore[reportAttributeAccessIssue]


@jax.custom_vjp
def _rounded(a: Array, b: Array) -> Array:
    return jnp.matmul(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16), preferred_element_type=jnp.float32)


def _forward(a: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
    return _rounded(a, b), (a, b)


def _backward(saved: tuple[Array, Array], upstream: Array) -> tuple[Array, Array]:
    a, b = saved
    return _rounded(upstream, b.T), _rounded(a.T, upstream)


_rounded.defvjp(_forward, _backward)
