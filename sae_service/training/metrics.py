"""Training metrics: sums and counts kept on the device, read and divided at each look."""

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from sae_service import hosts
from sae_service.errors import NonFiniteLoss
from sae_service.pytree import PyTree
from sae_service.sae.architecture import LossOutput

HINT = "Lower the learning rate, or look for NaN in the model's activations (dtype float16?)."


class Window(PyTree):
    """Sums over the batches since the last reading; `squares` and `rows` are of what is written."""

    n_rows: Float[Array, ""]
    n_steps: Float[Array, ""]
    loss: Float[Array, ""]
    terms: dict[str, Float[Array, ""]]
    grad_norm: Float[Array, ""]
    n_active: Float[Array, ""]
    squared_error: Float[Array, ""]
    squares: Float[Array, ""]
    rows: Float[Array, " d_write"]


def empty(term_names: tuple[str, ...], d_write: int) -> Window:
    """A window that has seen nothing."""

    # One array each: a step donates its buffers, and one buffer cannot be donated twice.
    def zero() -> Array:
        return jnp.zeros(())

    terms = {name: zero() for name in term_names}
    return Window(zero(), zero(), zero(), terms, zero(), zero(), zero(), zero(), jnp.zeros(d_write))


def add(window: Window, y: Float[Array, "batch d_write"], output: LossOutput, grad_norm: Float[Array, ""]) -> Window:
    """The window with one step more."""
    return Window(
        n_rows=window.n_rows + len(y),
        n_steps=window.n_steps + 1,
        loss=window.loss + output.total,
        terms={name: window.terms[name] + term for name, term in output.terms.items()},
        grad_norm=window.grad_norm + grad_norm,
        n_active=window.n_active + output.n_active,
        squared_error=window.squared_error + output.squared_error,
        squares=window.squares + jnp.sum(jnp.square(y)),
        rows=window.rows + jnp.sum(y, axis=0),
    )


def read(window: Window, step: int) -> dict[str, float]:
    """The means over the window: loss and its terms, l0, fvu, grad_norm. Raises NonFiniteLoss."""
    host: Any = hosts.fetched(window)
    n_rows, n_steps = max(float(host.n_rows), 1), max(float(host.n_steps), 1)
    deviation = float(host.squares) - float((host.rows.astype("float64") ** 2).sum()) / n_rows
    means = {
        "loss": float(host.loss) / n_steps,
        **{name: float(term) / n_steps for name, term in host.terms.items()},
        "l0": float(host.n_active) / n_rows,
        "fvu": float(host.squared_error) / deviation if deviation else 0.0,
        "grad_norm": float(host.grad_norm) / n_steps,
    }
    broken = [name for name, value in means.items() if not math.isfinite(value)]
    if broken:
        raise NonFiniteLoss(
            f"{', '.join(broken)} became NaN or infinite in the {int(n_steps)} steps up to step {step}.",
            hint=HINT,
        )
    return means
