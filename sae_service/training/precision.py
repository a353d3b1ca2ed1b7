"""What the matrix products of a job run in, to be said at its start and kept with its SAEs."""

from typing import Any

import jax
import jax.numpy as jnp

from sae_service.kernels.precision import product, products_in
from sae_service.spec import JobSpec
from sae_service.spec.precision import resolved


def of_job(job: JobSpec, model: dict[str, Any] | None) -> dict[str, Any]:
    """The precisions of the model's products, of those of each SAE's training and of the figures, and the libraries' settings.

    Args:
        model: that of the language model, and what torch is set to; None for synthetic rows.
    """
    saes = {sae.name: resolved(sae.precision, jax.default_backend()) for sae in job.saes}
    settings = {name: _settings(name) for name in sorted(set(saes.values()))}
    return {"model": model, "saes": saes, "figures": "float32", "jax": settings}


def _settings(precision: Any) -> dict[str, Any]:
    """What JAX is set to in a step."""
    matrix = jax.ShapeDtypeStruct((1, 1), jnp.float32)
    with products_in(precision):
        sums = jax.eval_shape(lambda a, b: product(a, b), matrix, matrix)
        setting = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    return {"jax_default_matmul_precision": setting, "preferred_element_type": str(sums.dtype)}


def said(found: dict[str, Any]) -> str:
    """The precisions in words."""
    by_precision: dict[str, list[str]] = {}
    for name, precision in found["saes"].items():
        by_precision.setdefault(precision, []).append(name)
    one = len(by_precision) == 1
    saes = [f"the SAEs' training {name}" if one else f"training {name} ({', '.join(of)})" for name, of in by_precision.items()]
    model = [] if found["model"] is None else [f"the language model {found['model']['products']}"]
    parts = ", ".join([*model, *saes, f"figures and files {found['figures']}"])
    settings = [] if found["model"] is None else [("torch", found["model"]["torch"])]
    settings += [("JAX", by_name) for by_name in found["jax"].values()]
    set_to = [f"{whose} has {', '.join(f'{key}={value}' for key, value in by_name.items())}" for whose, by_name in settings]
    return f"Matrix products: {parts}. Sums are float32. {'; '.join(set_to)}."


def warnings(job: JobSpec, found: dict[str, Any]) -> list[str]:
    """What was asked for and does not run."""
    asked = {f"saes[{index}].precision": (sae.precision, found["saes"][sae.name]) for index, sae in enumerate(job.saes)}
    if job.stream.model is not None:
        asked["stream.model.precision"] = job.stream.model.precision, found["model"]["products"]
    return [
        f"{field}: {wanted} was asked for, and this device has none; {runs} takes its place."
        for field, (wanted, runs) in asked.items() if wanted not in (None, runs)
    ]  # fmt: skip
