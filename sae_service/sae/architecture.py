"""The contract between an architecture and everything else.

An architecture is one file in `architectures/` that builds one `Architecture` from pure functions. Training knows
the functions; evaluation, export and download know only `InferenceSAE`, the one public form.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, Bool, Float

from sae_service.errors import InvalidSpec
from sae_service.pytree import PyTree
from sae_service.sae.inference import InferenceSAE
from sae_service.schema import ArchitectureConfig, Normalization, OptimizerConfig


class LossContext(PyTree):
    """What the training step lends a loss: the warm-up factor of its sparsity term, the dead latents, and the share
    of the job's steps that are done.
    """

    sparsity_scale: Float[Array, ""]
    is_dead: Bool[Array, " d_sae"]
    progress: Float[Array, ""]


class LossOutput(PyTree):
    """A loss, the named terms that it is the sum of, and what the metrics are computed from."""

    total: Float[Array, ""]
    terms: dict[str, Float[Array, ""]]
    x_hat: Float[Array, "batch d_in"]
    acts: Float[Array, "batch d_sae"]


def _cannot_start(config: Any, sae: InferenceSAE) -> Any:
    raise InvalidSpec(f"a {config.kind} SAE cannot start from weights that were trained before", "/initial")


@dataclass(frozen=True)
class Architecture:
    """One way to train an SAE, as pure functions over an immutable pytree of parameters.

    Attributes:
        config: the frozen config; its `kind` is the file's name.
        init: (config, d_in, key) -> parameters, float32: a `PyTree` of the architecture's own, or of `coder`.
        loss: (config, parameters, x, context) -> (LossOutput, next parameters). No side effect; the second value
            carries what moves without a gradient, such as an averaged threshold.
        export: (config, parameters) -> InferenceSAE in units of the rows that it was trained on.
        from_inference: (config, InferenceSAE) -> parameters, as NumPy arrays, whose export does the same; no device is
            touched. Raises InvalidSpec where there are none, as the default does.
        optimizer: the optimiser's defaults.
        normalization: the default scaling of the rows.
        example: a small config, for documentation and for the shared tests.
        chooses_over_the_batch: whether a row's latents depend on the other rows of its batch while it trains.
        fit_to_rows: (config, parameters, rows) -> parameters, applied once to the initial parameters with a sample of
            the rows that it is to be trained on.
        resample: (parameters, x, x_hat, is_dead, key) -> (parameters, touched): dead latents started anew, and a tree
            of masks of what was changed, whose optimiser state is reset. For configs that are a `ResamplingConfig`.
        constrain_gradients: (parameters, gradients) -> gradients, applied before the optimiser.
        constrain: parameters -> parameters, applied after the update.
    """

    config: type[ArchitectureConfig]
    init: Callable[[Any, int, Array], Any]
    loss: Callable[[Any, Any, Array, LossContext], tuple[LossOutput, Any]]
    export: Callable[[Any, Any], InferenceSAE]
    optimizer: OptimizerConfig
    normalization: Normalization
    example: ArchitectureConfig
    from_inference: Callable[[Any, InferenceSAE], Any] = _cannot_start
    chooses_over_the_batch: bool = False
    fit_to_rows: Callable[[Any, Any, Array], Any] = lambda config, parameters, rows: parameters
    resample: Callable[[Any, Array, Array, Array, Any], tuple[Any, Any]] | None = None
    constrain_gradients: Callable[[Any, Any], Any] = lambda parameters, gradients: gradients
    constrain: Callable[[Any], Any] = lambda parameters: parameters


