"""What a move of a row does through queries and keys, with the softmax computed anew: a correction of attribution patching.

Source: Kramár et al. 2024, "AtP*: An efficient and scalable method for localizing LLM behaviour to components",
arXiv:2403.00745 (the QK fix). There the nodes are queries and keys themselves. A latent moves the queries and keys of many
layers, so here its effect is cut by the first of them that it goes through: what goes through none is linear; what goes through
those of a layer first moves the scores there by a forward derivative, and the pattern by the softmax of the moved scores.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.autograd.forward_ad as forward
from jaxtyping import Float, Int

from sae_service.activations.model import LanguageModel
from sae_service.activations.observed import PATTERN
from sae_service.activations.patched import Moves, repeated

SCORES = "blocks.{}.attn.hook_attn_scores"


def through_softmax(
    model: LanguageModel, tokens: Int[np.ndarray, " positions"], moves: Moves,
    by_pattern: Mapping[int, Float[torch.Tensor, "heads queries keys"]],
) -> Float[np.ndarray, " runs"]:  # fmt: skip
    """What the moved patterns change in each run, to the first order in the patterns.

    Args:
        by_pattern: the gradient of what is changed by the pattern of each layer.
    """
    scores, total = dict[str, torch.Tensor](), torch.zeros(len(moves.positions), device=model.device)

    def move(value: torch.Tensor, hook: Any, name: str) -> torch.Tensor:
        held, before = _parts(value)
        added = moves.at(name, held.flatten(start_dim=2)).reshape(held.shape).to(held.dtype)
        return forward.make_dual(held, added if before is None else added + before)

    def note(value: torch.Tensor, hook: Any, name: str) -> None:
        _, change = _parts(value)
        if change is not None:
            scores[name] = change.float()

    def cut(value: torch.Tensor, hook: Any, layer: int) -> torch.Tensor:
        held, _ = _parts(value)
        change = scores.pop(SCORES.format(layer), None)
        if change is not None:
            pattern = held.float()
            # The logarithm is the score but for a constant of its row, and minus infinity where nothing is attended to.
            moved = (pattern.log() + change).softmax(dim=-1)
            total.add_(((moved - pattern) * by_pattern[layer]).sum(dim=(1, 2, 3)))
        return held

    hooks = [(name, partial(move, name=name)) for name in moves.vectors]
    for layer in by_pattern:
        name = SCORES.format(layer)
        hooks += [(name, partial(note, name=name)), (PATTERN.format(layer), partial(cut, layer=layer))]
    ids = repeated(model, tokens, len(moves.positions))
    with model.computing(gradients=True), torch.no_grad(), forward.dual_level():
        model.bridge.run_with_hooks(ids, fwd_hooks=hooks, return_type="logits")
    return total.cpu().numpy()


def _parts(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A value and its forward derivative, if it has one."""
    found = forward.unpack_dual(value)
    return found.primal, found.tangent
