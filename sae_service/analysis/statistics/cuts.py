"""How much context a row depends on: its cosine to the row that the model has of the last few tokens alone."""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Bool, Float, Int

from sae_service.activations import observed
from sae_service.activations.model import LanguageModel

LONGEST = 64
PER_PROMPT = 4
"""Positions of a row of the model that are looked at: more of them would be about the same text."""


class Cuts:
    """Cosines so far.

    Attributes:
        lengths: so many of the last tokens, the token itself among them, are read, after the first one of the row (BOS), with
            which every row begins.
        hook_names: where the rows are compared.
        places: the row of the model and the position in it.
        cosines: at each place, for each length, at each hook point.
    """

    places: Int[np.ndarray, "places 2"]
    cosines: Float[np.ndarray, "places lengths hook_points"]

    def __init__(self, model: LanguageModel, hook_names: list[str], context_size: int, n_wanted: int, pass_tokens: int) -> None:
        """None yet.

        Args:
            n_wanted: how many places are looked at.
            pass_tokens: tokens that may go through the model at once.
        """
        self._model, self.hook_names, self._n_wanted, self._pass_tokens = model, hook_names, n_wanted, pass_tokens
        longest = min(LONGEST, context_size - 2)
        self.lengths = [1 << power for power in range(longest.bit_length())] if longest > 0 else []
        self.places = np.zeros((0, 2), np.int64)
        self.cosines = np.zeros((0, len(self.lengths), len(hook_names)))

    def chosen(self, keep: Bool[np.ndarray, "prompts positions"], first_prompt: int) -> Int[np.ndarray, "places 2"]:
        """Rows and positions of a batch to look at, drawn by the row's number alone."""
        found = list[tuple[int, int]]()
        for index, row in enumerate(keep if self.lengths and self.hook_names else ()):
            able = np.flatnonzero(row)
            able = able[able > self.lengths[-1]]
            drawn = np.random.default_rng(first_prompt + index).permutation(able)[:PER_PROMPT]
            found += [(index, int(position)) for position in sorted(drawn)]
        return np.array(found[: self._n_wanted - len(self.places)], np.int64).reshape(-1, 2)

    def add(
        self, tokens: Int[np.ndarray, "prompts positions"], chosen: Int[np.ndarray, "places 2"], first_prompt: int,
        full: dict[str, Float[np.ndarray, "places d_model"]], alive: Callable[[], None],
    ) -> None:  # fmt: skip
        """Looks at places of a batch.

        Args:
            full: the rows there, with all their context, by hook point.
            alive: called now and then.
        """
        found = np.zeros((len(chosen), len(self.lengths), len(self.hook_names)))
        for which, length in enumerate(self.lengths):
            for part in self._parts(len(chosen), length + 1):
                alive()
                cut = np.stack([_cut(tokens[prompt], position, length) for prompt, position in chosen[part]])

                def look(name: str, rows: np.ndarray, which: int = which, part: slice = part) -> None:
                    found[part, which, self.hook_names.index(name)] = _cosines(rows[:, -1], full[name][part])

                observed.rows(self._model, cut, self.hook_names, look)
        self.places = np.concatenate([self.places, chosen + np.array([first_prompt, 0])])
        self.cosines = np.concatenate([self.cosines, found])

    def _parts(self, n: int, length: int) -> Iterator[slice]:
        step = max(1, self._pass_tokens // length)
        return (slice(start, min(start + step, n)) for start in range(0, n, step))

    def means(self, hook_name: str) -> Float[np.ndarray, " lengths"]:
        """The mean cosine for each length at a hook point, over the places, of which there is one at least."""
        return self.cosines[:, :, self.hook_names.index(hook_name)].mean(axis=0)

    def state(self) -> dict[str, np.ndarray]:
        """What is remembered."""
        return {"places": self.places, "cosines": self.cosines}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Goes on from a state."""
        self.places, self.cosines = state["places"], state["cosines"]


def _cut(tokens: Int[np.ndarray, " positions"], position: int, length: int) -> Int[np.ndarray, " shorter"]:
    return np.concatenate([tokens[:1], tokens[position - length + 1 : position + 1]])


def _cosines(rows: Float[np.ndarray, "places d"], others: Float[np.ndarray, "places d"]) -> Float[np.ndarray, " places"]:
    a, b = rows.astype(np.float64), others.astype(np.float64)
    sizes = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(axis=1), sizes, out=np.zeros(len(a)), where=sizes > 0)
