"""Where a model's own forward pass has the bridge's values: that is tried on a sample, and what differs is said."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float, Int

from sae_service.activations.blame import blamed
from sae_service.activations.plain_pass import PlainPass
from sae_service.errors import InvalidSpec

Ids = Int[torch.Tensor, "prompts context_size"]
Read = Callable[[Ids, tuple[str, ...]], dict[str, torch.Tensor]]
"""The values at hook points."""


class TriedPass:
    """A model's own forward pass, and which hook points it can be trusted with.

    Attributes:
        plain: the pass, or None if its logits are not the bridge's.
        warnings: what differs.
    """

    plain: PlainPass | None

    def __init__(self, bridge: Any, read: Read, sample: Ids, tolerance: float) -> None:
        """Tries the logits. Raises what the bridge raises if the model does not run.

        Args:
            read: the bridge's pass.
            tolerance: the relative difference that rounding may make.
        """
        self._read, self._sample, self._tolerance = read, sample, tolerance
        self._is_trusted: dict[str, bool] = {}
        self._takes_two = False
        self.plain, self.warnings = None, list[str]()
        expected = bridge(sample, return_type="logits")

        def attempt() -> torch.Tensor:
            self.plain = PlainPass(bridge)
            return self.plain.logits(sample, {})

        if not self._has("its logits", expected, attempt):
            self.plain = None

    def trusted(self, hook_names: Iterable[str]) -> PlainPass | None:
        """The pass, if it has all these hook points with the bridge's values. Each is tried once."""
        plain, names = self.plain, tuple(hook_names)
        if plain is None or not all(name in plain for name in names):
            return None
        for name in names:
            if name not in self._is_trusted:
                self._is_trusted[name] = self._has_values(plain, name)
        return plain if all(self._is_trusted[name] for name in names) else None

    def read(self, ids: Ids, hook_names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """The values at hook points, each by the pass that it is always read by: those beside it change none of them."""
        own = tuple(name for name in hook_names if self.trusted((name,)))
        others = tuple(name for name in hook_names if name not in own)
        found = self.plain.read(ids, own) if self.plain and own else {}
        if found and others and not self._takes_two:
            self._takes_two = True
            self.warnings.append(
                f"{', '.join(others)} can be read by TransformerLens's pass alone, and the other hook points by the model's own: "
                "each batch of text takes two passes."
            )
        return found | (self._read(ids, others) if others else {})

    def _has_values(self, plain: PlainPass, name: str) -> bool:
        expected = self._read(self._sample, (name,)).get(name)
        return expected is not None and self._has(name, expected, lambda: plain.read(self._sample, (name,))[name])

    def _has(self, what: str, expected: torch.Tensor, attempt: Callable[[], torch.Tensor]) -> bool:
        """Whether an attempt gives what is expected. If not, that is said."""
        try:
            with blamed(InvalidSpec, "it fails", None):
                difference = _difference(attempt(), expected)
            said = f"the relative difference is {difference:.1e}"
        except InvalidSpec as error:
            difference, said = math.inf, error.message.removesuffix(".")
        if difference <= self._tolerance:
            return True
        self.warnings.append(
            f"The model's own forward pass does not give TransformerLens's values of {what} ({said}); TransformerLens's pass, "
            "which is slower, is used."
        )
        return False


def _difference(found: Float[torch.Tensor, "..."], expected: Float[torch.Tensor, "..."]) -> float:
    """The norm of the difference as a share of that of what is expected; infinite if the shapes differ."""
    if found.shape[:2] != expected.shape[:2] or found.numel() != expected.numel():
        return math.inf
    wanted = expected.flatten(start_dim=2).float()
    return float((found.flatten(start_dim=2).float() - wanted).norm() / wanted.norm())
