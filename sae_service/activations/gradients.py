"""Gradients in a model: of a difference of logits, and of what a later latent reads, by the rows of hook points.

They are taken in TransformerLens's pass, which computes attention step by step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from sae_service.activations.difference import Difference
from sae_service.activations.model import LanguageModel
from sae_service.activations.observed import PATTERN
from sae_service.activations.patched import Moves, repeated

OUTPUTS = ("blocks.{}.hook_attn_out", "blocks.{}.hook_mlp_out")
"""What a layer writes."""


@dataclass
class Taped:
    """A pass whose values at hook points are kept, so that gradients can be taken by them.

    Attributes:
        cut: hook points whose values are constants for what comes after.
    """

    names: Sequence[str]
    cut: frozenset[str] = frozenset()
    values: dict[str, torch.Tensor] = field(default_factory=dict)

    def run(self, model: LanguageModel, ids: Int[torch.Tensor, "runs positions"]) -> torch.Tensor:
        """The logits."""
        hooks = [(name, partial(self._keep, name=name)) for name in dict.fromkeys((*self.names, *self.cut))]
        return model.bridge.run_with_hooks(ids, fwd_hooks=hooks, return_type="logits")

    def _keep(self, value: torch.Tensor, hook: Any, name: str) -> torch.Tensor:
        kept = value.clone() if value.requires_grad else value.detach().clone().requires_grad_()
        self.values[name] = kept
        return kept.detach() if name in self.cut else kept

    def rows(self) -> dict[str, torch.Tensor]:
        """The values as rows."""
        return {name: value.flatten(start_dim=2) for name, value in self.values.items()}

    def gradients(self, of: torch.Tensor) -> dict[str, torch.Tensor]:
        """Those of a number; zeros where it does not depend on a hook point."""
        found = torch.autograd.grad(of, [self.values[name] for name in self.names], allow_unused=True)
        return {
            name: torch.zeros_like(self.values[name]) if gradient is None else gradient
            for name, gradient in zip(self.names, found, strict=True)
        }


def by_rows(
    model: LanguageModel, tokens: Int[np.ndarray, " positions"], difference: Difference, hook_names: Sequence[str],
    cut: frozenset[str] = frozenset(),
) -> dict[str, Float[np.ndarray, "positions width"]]:  # fmt: skip
    """The gradient of a difference of logits by the rows of hook points.

    Args:
        cut: hook points through which no gradient goes.
    """
    with model.computing(gradients=True):
        found = _taped(model, tokens, difference, hook_names, cut)
        return {name: _array(gradient[0].flatten(start_dim=1)) for name, gradient in found.items()}


def by_patterns(
    model: LanguageModel, tokens: Int[np.ndarray, " positions"], difference: Difference, layers: Sequence[int]
) -> dict[int, Float[torch.Tensor, "heads queries keys"]]:
    """The gradient of a difference of logits by the attention patterns of layers, on the model's device."""
    names = {PATTERN.format(layer): layer for layer in layers}
    with model.computing(gradients=True):
        found = _taped(model, tokens, difference, tuple(names), frozenset())
        return {names[name]: gradient[0].float() for name, gradient in found.items()}


def _taped(
    model: LanguageModel, tokens: np.ndarray, difference: Difference, names: Sequence[str], cut: frozenset[str]
) -> dict[str, torch.Tensor]:
    taped = Taped(tuple(dict.fromkeys((*names, *difference.watched))), cut)
    logits = taped.run(model, repeated(model, tokens, 1))
    found = taped.gradients(difference.of(logits, taped.rows()).sum())
    return {name: found[name] for name in names}


def layer_outputs(model: LanguageModel, fit: Callable[[Sequence[str]], Sequence[str]]) -> list[frozenset[str]]:
    """The hook points of what each layer writes.

    Args:
        fit: those of some names that the model has.
    """
    layers = range(model.bridge.cfg.n_layers)
    return [frozenset(fit([name.format(layer) for name in OUTPUTS])) for layer in layers]


def of_readings(
    model: LanguageModel, tokens: Int[np.ndarray, " positions"], readings: Moves, hook_names: Sequence[str]
) -> dict[str, Float[np.ndarray, "runs positions width"]]:
    """The gradient of what is read in each run, the product of a vector with a row, by the rows of earlier hook points.

    Args:
        readings: the position and the vector of each run.
    """
    with model.computing(gradients=True):
        taped = Taped(tuple(dict.fromkeys((*hook_names, *readings.vectors))))
        taped.run(model, repeated(model, tokens, len(readings.positions)))
        rows = taped.rows()
        total = torch.stack([(readings.at(name, rows[name].detach()) * rows[name]).sum() for name in readings.vectors]).sum()
        found = taped.gradients(total)
        return {name: _array(found[name].flatten(start_dim=2)) for name in hook_names}


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()
