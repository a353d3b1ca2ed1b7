"""What goes on in a model as it reads, as NumPy arrays: the rows of hook points one at a time, attention, the weights of heads."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from sae_service.activations.model import LanguageModel
from sae_service.errors import InvalidSpec

Tokens = Int[np.ndarray, "prompts context_size"]
AT_ONCE = 1 << 22
"""Numbers of a pattern that are looked at together."""
PATTERN = "blocks.{}.attn.hook_pattern"
FIGURES = ("distance", "first_share", "separator_share", "entropy")
"""Of the attention of a head at a position: the mean distance to what is read, the share on the first position of the row, that on
all separators (BOS), and the entropy in nats.
"""


def rows(
    model: LanguageModel, tokens: Tokens, hook_names: Sequence[str],
    look: Callable[[str, Float[np.ndarray, "prompts context_size d_in"]], None],
) -> None:  # fmt: skip
    """Shows the rows of each hook point, in float32, when they are computed. Raises InvalidSpec for one that is not computed."""
    seen = set[str]()

    def show(value: torch.Tensor, name: str) -> None:
        seen.add(name)
        look(name, value.flatten(start_dim=2).float().cpu().numpy())

    model.show(tokens, {name: partial(show, name=name) for name in hook_names})
    if missing := [name for name in hook_names if name not in seen]:
        raise InvalidSpec(f"the model computed nothing at hook point {missing[0]!r}", "/hook_names")


def fit(model: LanguageModel, hook_names: Sequence[str]) -> list[str]:
    """Those of these hook points that the model has, and computes once, as one vector for each token."""
    tokens = model.sample()
    fired = model.fired(tokens, [name for name in hook_names if name in model.bridge.hook_dict])
    shapes: dict[str, list[Any]] = {}
    for name, value in fired:
        shapes.setdefault(name, []).append(tuple(getattr(value, "shape", ())))
    is_fit = {name: len(found) == 1 and len(found[0]) >= 3 and found[0][:2] == tokens.shape for name, found in shapes.items()}
    return [name for name in hook_names if is_fit.get(name)]


def attending_layers(model: LanguageModel) -> list[int]:
    """The layers whose attention can be looked at: a share for each pair of positions."""
    tokens = model.sample()
    names = {PATTERN.format(layer): layer for layer in range(model.bridge.cfg.n_layers)}
    fired = model.fired(tokens, [name for name in names if name in model.bridge.hook_dict])
    n = tokens.shape[1]
    return [names[name] for name, value in fired if getattr(value, "ndim", 0) == 4 and tuple(value.shape[2:]) == (n, n)]


def attention(
    model: LanguageModel, tokens: Tokens, is_separator: Bool[np.ndarray, "prompts context_size"], layers: Sequence[int],
    look: Callable[[int, Float[np.ndarray, "figures prompts heads context_size"]], None],
) -> None:  # fmt: skip
    """Shows what each head attends to at each position, as FIGURES, layer by layer. TransformerLens's pass computes it."""
    separators = torch.from_numpy(is_separator).to(model.device)

    def show(pattern: torch.Tensor, layer: int) -> None:
        found = [_figures(one, here) for one, here in zip(pattern, separators, strict=True)]
        look(layer, torch.stack(found, dim=1).cpu().numpy())

    model.show(tokens, {PATTERN.format(layer): partial(show, layer=layer) for layer in layers})


def _figures(
    pattern: Float[torch.Tensor, "heads queries keys"], is_separator: Bool[torch.Tensor, " keys"]
) -> Float[torch.Tensor, "figures heads queries"]:
    places, found = torch.arange(pattern.shape[-1], device=pattern.device), list[torch.Tensor]()
    # A few queries at a time: in float64 a pattern is twice as large as it is.
    step = max(1, AT_ONCE // (pattern.shape[0] * pattern.shape[2]))
    for part, queries in zip(pattern.split(step, dim=1), places.split(step), strict=True):
        exact = part.double()
        distance = (exact * (queries[:, None] - places)).sum(dim=-1)
        entropy = -torch.special.xlogy(exact, exact).sum(dim=-1)
        found.append(torch.stack([distance, exact[..., 0], exact[..., is_separator].sum(dim=-1), entropy]))
    return torch.cat(found, dim=-1)


def ov_weights(model: LanguageModel, layer: int) -> tuple[np.ndarray, np.ndarray] | None:
    """W_V [kv_heads, d_model, d_head] and W_O [heads, d_head, d_model] of a layer; None if its attention has none of this form."""
    try:
        part = model.bridge.blocks[layer].attn
        found = tuple(getattr(part, name).detach().float().cpu().numpy() for name in ("W_V", "W_O"))
    except (AttributeError, RuntimeError, ValueError):
        return None
    W_V, W_O = found
    is_known = W_V.ndim == W_O.ndim == 3 and W_V.shape[2] == W_O.shape[1] and not len(W_O) % len(W_V)
    return (W_V, W_O) if is_known else None
