"""Terms of a loss that are about dead latents alone, computed for these alone: mostly there are few."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sae_service.kernels.precision import product
from sae_service.pytree import PyTree

FEW = 8
"""Dead latents are few if they are at most d_sae / FEW."""

Term = Callable[[Array, Array, Any, Any], Array]
"""(z [batch, latents], which of these are dead, what belongs to the latents, what else there is) -> the term."""


class OfLatents(PyTree):
    """What a term needs of each latent: the encoder, and in any tree what has the latents along its first axis."""

    W_enc: Float[Array, "d_read d_sae"]
    b_enc: Float[Array, " d_sae"]
    others: Any


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def of_dead(
    term: Term, can_gather: bool, is_dead: Bool[Array, " d_sae"], x: Float[Array, "batch d_read"], latents: OfLatents, given: Any
) -> Float[Array, ""]:
    """The term of the dead latents; 0 if there are none. Neither `x` nor `given` has a gradient.

    The gradient is computed with the value, so that nothing as wide as all latents is kept from the one for the other.

    Args:
        can_gather: see `Ops`; without it the term is computed from all latents, of which the others are not dead.
    """
    return _measured(term, can_gather, is_dead, x, latents, given)[0]


def _measured(term: Term, can_gather: bool, is_dead: Array, x: Array, latents: OfLatents, given: Any) -> tuple[Array, OfLatents]:
    d_sae = len(is_dead)
    few = d_sae // FEW
    nothing = jax.tree.map(jnp.zeros_like, latents)

    def total(latents: OfLatents, is_dead: Array) -> Array:
        return term(product(x, latents.W_enc) + latents.b_enc, is_dead, latents.others, given)

    def of_none() -> tuple[Array, OfLatents]:
        return jnp.zeros((), x.dtype), nothing

    def of_few() -> tuple[Array, OfLatents]:
        (indices,) = jnp.nonzero(is_dead, size=few, fill_value=d_sae)
        chosen = jax.tree.map(lambda leaf: leaf.at[indices].get(mode="fill", fill_value=0), latents.replace(W_enc=latents.W_enc.T))
        chosen = chosen.replace(W_enc=chosen.W_enc.T)
        value, gradient = jax.value_and_grad(total)(chosen, indices < d_sae)
        placed = jax.tree.map(
            lambda leaf, part: leaf.at[indices].set(part, mode="drop"),
            nothing.replace(W_enc=nothing.W_enc.T), gradient.replace(W_enc=gradient.W_enc.T),
        )  # fmt: skip
        return value, placed.replace(W_enc=placed.W_enc.T)

    def of_all() -> tuple[Array, OfLatents]:
        return jax.value_and_grad(total)(latents, is_dead)

    n_dead = jnp.sum(is_dead)
    if not can_gather:
        return jax.lax.cond(n_dead > 0, of_all, of_none)
    return jax.lax.switch(jnp.int32(n_dead > 0) + (n_dead > few), (of_none, of_few, of_all))


def _forward(term: Term, can_gather: bool, is_dead: Array, x: Array, latents: OfLatents, given: Any) -> tuple[Array, OfLatents]:
    return _measured(term, can_gather, is_dead, x, latents, given)


def _backward(term: Term, can_gather: bool, gradient: OfLatents, upstream: Array) -> tuple[Any, ...]:
    return None, None, jax.tree.map(lambda leaf: upstream * leaf, gradient), None


of_dead.defvjp(_forward, _backward)
