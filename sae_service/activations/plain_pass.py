"""A model's own forward pass, read and edited by torch's hooks at the modules that have the wanted values.

The bridge computes attention step by step, since it has a hook point at each of them, and looks for hooks at all the others
too. The model as it is published does neither, and takes the attention that its library chooses.
"""

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from transformers.activations import FastGELUActivation, GELUTanh, NewGELUActivation

Look = Callable[[torch.Tensor], torch.Tensor | None]
"""Sees the values of a module; what it returns replaces them, and None leaves them."""
_INPUTS = ("hidden_states", "input", "x")


class _AllSeen(Exception):
    """All that is wanted has been computed."""


@dataclass(frozen=True)
class _Place:
    """What goes into a module, or what comes out of it first."""

    module: torch.nn.Module
    is_input: bool

    def hooked(self, look: Look) -> Any:
        """A handle that removes the hook."""
        if self.is_input:
            return self.module.register_forward_pre_hook(partial(_before, look), with_kwargs=True)
        return self.module.register_forward_hook(partial(_after, look))


def _before(look: Look, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
    name = None if args else next((name for name in _INPUTS if name in kwargs), _INPUTS[0])
    edited = look(args[0] if name is None else kwargs[name])
    if edited is None:
        return None
    return ((edited, *args[1:]), kwargs) if name is None else (args, kwargs | {name: edited})


def _after(look: Look, _module: Any, _args: Any, output: Any) -> Any:
    if not isinstance(output, tuple):
        return look(output)
    edited = look(output[0])
    return None if edited is None else (edited, *output[1:])


def _components(model: torch.nn.Module) -> list[Any]:
    """The bridge's components that stand around a module of the model's. One without a name has the module of another one."""
    return [found for found in model.modules() if "_original_component" in found._modules and getattr(found, "name", None)]


def _fuse_gelu(model: torch.nn.Module) -> None:
    """Computes GELU's approximation by tanh in one operation, where transformers writes it as eight, each over the whole array."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation | FastGELUActivation):
                setattr(module, name, GELUTanh())


class PlainPass:
    """The model that a bridge wraps, without the bridge: its modules are copies, and its weights are the same tensors.

    One forward pass at a time.
    """

    def __init__(self, bridge: Any) -> None:
        """Takes the modules out of the bridge's components."""
        wrapped = bridge.original_model
        copies: dict[int, Any] = {id(tensor): tensor for tensor in (*wrapped.parameters(), *wrapped.buffers())}
        # What is inside comes first, so that what is around it finds the copy.
        for component in reversed(_components(wrapped)):
            copies[id(component)] = copy.deepcopy(component.original_component, copies)
        self._model = copy.deepcopy(wrapped, copies)
        for module in self._model.modules():
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()
        _fuse_gelu(self._model)
        self._model.set_attn_implementation(self._model.get_correct_attn_implementation(None))
        self._places = self._found(bridge, copies)

    def _found(self, bridge: Any, copies: Mapping[int, Any]) -> dict[str, _Place]:
        """The hook points that are what goes into a module or comes out of it. The bridge splits some modules into several."""
        own = set(self._model.modules())
        by_point: dict[int, _Place] = {}
        for component in _components(bridge):
            module = copies.get(id(component))
            if module is not None and module in own:
                by_point |= {id(component.hook_in): _Place(module, True), id(component.hook_out): _Place(module, False)}
        points = bridge.hook_dict.items()
        return {name: by_point[id(point)] for name, point in points if id(point) in by_point}

    def __contains__(self, hook_name: str) -> bool:
        """Whether it has a hook point; with which values, has to be tried."""
        return hook_name in self._places

    def logits(
        self, ids: Int[torch.Tensor, "prompts context_size"], looks: Mapping[str, Look]
    ) -> Float[torch.Tensor, "prompts context_size n_vocab"]:
        """The logits, with what `looks` put in place of the values at hook points."""
        with ExitStack() as hooks:
            for name, look in looks.items():
                hooks.callback(self._places[name].hooked(look).remove)
            return self._model(input_ids=ids, use_cache=False).logits

    def show(self, ids: Int[torch.Tensor, "prompts context_size"], looks: Mapping[str, Callable[[torch.Tensor], None]]) -> None:
        """Shows the values at each hook point, as the model shapes them, when they are computed. The pass ends with the last."""
        seen = set[str]()

        def note(value: torch.Tensor, name: str) -> None:
            looks[name](value)
            seen.add(name)
            if len(seen) == len(looks):
                raise _AllSeen

        with suppress(_AllSeen):
            self.logits(ids, {name: partial(note, name=name) for name in looks})

    def read(self, ids: Int[torch.Tensor, "prompts context_size"], hook_names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """The values at each hook point that is computed, as `show` has them."""
        found: dict[str, torch.Tensor] = {}
        self.show(ids, {name: partial(found.__setitem__, name) for name in hook_names})
        return found
