"""What a model is asked before the first step: whether each hook point of a job can be read, and replaced where it is written."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from sae_service.activations.blame import blamed
from sae_service.activations.model import LanguageModel
from sae_service.activations.model_files import check_context
from sae_service.errors import InvalidSpec
from sae_service.hook_points import BLOCK, RESIDUAL_SITES, check_site

Tokens = Int[np.ndarray, "prompts context_size"]
Losses = Float[np.ndarray, "prompts predicted"]


@dataclass(frozen=True)
class Place:
    """Where an SAE reads and writes. `param` is the JSON pointer of the SAE in the spec."""

    reads: Sequence[str]
    writes: Sequence[str]
    param: str | None = None

    @property
    def hook_names(self) -> tuple[str, ...]:
        """All its hook points, each once."""
        return tuple(dict.fromkeys((*self.reads, *self.writes)))

    def pointer(self, hook_name: str) -> str | None:
        """The field that names a hook point."""
        return None if self.param is None else f"{self.param}/{'hook_name' if hook_name in self.reads else 'hook_name_out'}"


@dataclass(frozen=True)
class Found:
    """The width of the rows at each hook point, and what the user may want to know."""

    widths: dict[str, int]
    warnings: list[str] = field(default_factory=list)


def check(model: LanguageModel, context_size: int, places: Sequence[Place]) -> Found:
    """Tries a model on a few tokens, for all that is wrong to be said in the first minute, once and by its field.

    Raises:
        InvalidSpec: the context is too long; the model does not run in its dtype; or a hook point is not there, never
            computed, computed more than once, has no row for each position, has the rows of another one of its SAE, or is
            written and cannot be replaced, or to no effect, or before one that the SAE reads.
        OutOfMemory: already the model needs more than there is.
    """
    check_context(context_size, model.bridge.cfg.n_ctx)
    pointers = {name: place.pointer(name) for place in reversed(places) for name in place.hook_names}
    _check_names(model, pointers)
    losses, tokens = model.first_losses(), model.sample()
    beside = {name: _siblings(model, name) for name in pointers}
    fired = _values(model, tokens, pointers, [name for names in beside.values() for name in names])
    for place in places:
        _check_place(place, fired)
    for name in dict.fromkeys(name for place in places for name in place.writes):
        _check_splice(model, tokens, losses, name, pointers[name])
    with blamed(InvalidSpec, "the hook points cannot be read", "/saes"):
        rows = model.activations(tokens, tuple(pointers))
    same = [
        f"In this model {name} has the values of {other}."
        for name, others in beside.items() for other in others if _are_same(fired[name], fired.get(other))
    ]  # fmt: skip
    return Found({name: rows[name].shape[-1] for name in pointers}, same + model.warnings)


def check_reads(model: LanguageModel, context_size: int, pointers: Mapping[str, str]) -> dict[str, int]:
    """The width of the rows at each hook point, of a model that is only read. Raises as `check` does.

    Args:
        pointers: the field that names each hook point.
    """
    check_context(context_size, model.bridge.cfg.n_ctx)
    _check_names(model, pointers)
    model.first_losses()
    fired = _values(model, model.sample(), pointers, [], next(iter(pointers.values()), None))
    return {name: fired[name].flatten(start_dim=2).shape[-1] for name in pointers}


def _check_names(model: LanguageModel, pointers: Mapping[str, str | None]) -> None:
    known = model.bridge.hook_dict
    for name, param in pointers.items():
        check_site(name, model.family, param)
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            hint = f"Close: {', '.join(close)}." if close else ""
            raise InvalidSpec(f"the model has no hook point {name!r}.", param, hint)


def _siblings(model: LanguageModel, hook_name: str) -> list[str]:
    """The other well-known places of a block whose values should not be those of this one."""
    block = BLOCK.fullmatch(hook_name)
    if not block or block[2] not in RESIDUAL_SITES:
        return []
    names = (f"blocks.{block[1]}.{site}" for site in RESIDUAL_SITES)
    return [name for name in names if name != hook_name and name in model.bridge.hook_dict]


def _values(
    model: LanguageModel, tokens: Tokens, pointers: Mapping[str, str | None], others: Sequence[str], param: str | None = "/saes"
) -> dict[str, Any]:
    """The values at each hook point, in the order in which they are computed. Raises InvalidSpec for what are no rows."""
    with blamed(InvalidSpec, "the hook points cannot be read", param):
        fired = model.fired(tokens, dict.fromkeys((*pointers, *others)))
    for name, param in pointers.items():
        values = [value for at, value in fired if at == name]
        if not values:
            raise InvalidSpec(f"the model computes nothing at {name}.", param)
        if len(values) > 1:
            raise InvalidSpec(f"the model computes {name} {len(values)} times in a pass, so it is not one place.", param)
        shape = tuple(getattr(values[0], "shape", ()))
        if shape[:2] != tokens.shape or len(shape) < 3 or not values[0].is_floating_point():
            said = f"{name} is not one vector for each token, so no SAE can train on it: of {tokens.shape} tokens it has {shape}."
            raise InvalidSpec(said, param)
    return dict(fired)


def _check_place(place: Place, fired: Mapping[str, Any]) -> None:
    """Raises InvalidSpec if two hook points of an SAE are one, or what it writes is computed before what it reads."""
    for index, name in enumerate(place.hook_names):
        for other in place.hook_names[:index]:
            if _are_same(fired[name], fired[other]):
                raise InvalidSpec(f"{name} has the values of {other} in this model; name one of them.", place.pointer(name))
    if set(place.reads) == set(place.writes):
        return
    order = list(fired)
    last_read, first_written = max(place.reads, key=order.index), min(place.writes, key=order.index)
    if order.index(first_written) < order.index(last_read):
        raise InvalidSpec(
            f"the model computes {first_written}, which is written, before {last_read}, which is read.",
            place.pointer(first_written), "hook_name_out must come after hook_name in the model.",
        )  # fmt: skip


def _check_splice(model: LanguageModel, tokens: Tokens, losses: Losses, hook_name: str, param: str | None) -> None:
    """Raises InvalidSpec if the values put in their own place change the loss, or if others do not."""

    def others(rows: Any) -> Any:
        noise = np.random.default_rng(0).standard_normal(tuple(rows.shape), np.float32)
        return rows + rows.new_tensor(noise) * (1e-3 + rows.std())

    with blamed(InvalidSpec, f"{hook_name} can be read in this model, but nothing can be put in its place", param):
        same = model.losses(tokens, {hook_name: lambda rows: rows.clone()})
        changed = model.losses(tokens, {hook_name: others})
    if np.linalg.norm(same - losses) > model.tolerance * np.linalg.norm(losses):
        raise InvalidSpec(f"{hook_name} cannot be replaced in this model: its own values in its place change the loss.", param)
    if np.array_equal(changed, same):
        raise InvalidSpec(f"what is put in place of {hook_name} does not reach the loss of this model.", param)


def _are_same(values: Any, others: Any) -> bool:
    # Where products are rounded, some hook points have 16 bits and others 32.
    return others is not None and values.shape == others.shape and values.float().equal(others.float())
