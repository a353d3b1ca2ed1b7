"""What attention heads attend to, on average over positions that count."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int

from sae_service.activations import observed
from sae_service.activations.model import LanguageModel


class AttentionTally:
    """Sums of `observed.FIGURES` so far.

    Attributes:
        layers: those whose attention can be looked at.
        n: positions.
        sums: by layer, figure and head.
        even: sums of the distance and of the entropy that a head would have that attends evenly to all positions.
    """

    def __init__(self, model: LanguageModel, layers: list[int], separator: int | None) -> None:
        self._model, self._separator, self.layers = model, separator, layers
        self.n, self.even = np.zeros(1, np.int64), np.zeros(2)
        self.sums: dict[int, Float[np.ndarray, "figures heads"]] = {}

    def add(
        self, tokens: Int[np.ndarray, "prompts positions"], keep: Bool[np.ndarray, "prompts positions"], alive: Callable[[], None]
    ) -> None:
        """Counts what is attended to from the positions of a batch that count.

        Args:
            alive: called now and then.
        """

        def look(layer: int, found: np.ndarray) -> None:
            alive()
            total = np.einsum("fphq,pq->fh", found, keep.astype(np.float64))
            self.sums[layer] = self.sums[layer] + total if layer in self.sums else total

        is_separator = tokens == self._separator if self._separator is not None else np.zeros(tokens.shape, bool)
        observed.attention(self._model, tokens, is_separator, self.layers, look)
        places = np.nonzero(keep)[1]
        self.n += len(places)
        self.even += (places / 2).sum(), np.log1p(places).sum()

    def means(self, layer: int) -> dict[str, Float[np.ndarray, " heads"]]:
        """The mean of each figure, by head; nothing if the layer was not looked at."""
        found = self.sums.get(layer)
        return {} if found is None else dict(zip(observed.FIGURES, found / self.n, strict=True))

    def state(self) -> dict[str, np.ndarray]:
        """What is remembered."""
        return {"n": self.n, "even": self.even} | {f"sums.{layer}": values for layer, values in self.sums.items()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Goes on from a state."""
        self.n, self.even = state["n"], state["even"]
        self.sums = {int(name.removeprefix("sums.")): values for name, values in state.items() if name.startswith("sums.")}
