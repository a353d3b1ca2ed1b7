"""Prompts as a model reads them, and tokens that are named by their texts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from sae_service.activations import tokenizer as text
from sae_service.activations.model import LanguageModel, keep_mask
from sae_service.errors import InvalidSpec


@dataclass(frozen=True)
class Reading:
    """A prompt.

    Attributes:
        keep: where a position counts and may be edited.
        place: the field that has it.
    """

    tokens: Int[np.ndarray, " positions"]
    keep: Bool[np.ndarray, " positions"]
    place: str

    @property
    def counted(self) -> Bool[np.ndarray, " predicted"]:
        """Where a next-token loss counts."""
        return self.keep[:-1]


def readings(
    model: LanguageModel, prompts: Sequence[str | tuple[int, ...]], exclude: tuple[str | int, ...], field: str = "prompts"
) -> list[Reading]:
    """The prompts of a field. Texts begin with BOS, or EOS where a tokenizer has no BOS, as rows of text do.

    Raises:
        InvalidSpec: one has no token that counts, one that the model does not have, or more than the model reads at once.
        ModelNotFound: there is a text, and the model has no tokenizer.
    """
    excluded = model.excluded_tokens(exclude)
    return [_reading(model, prompt, excluded, f"/{field}/{index}") for index, prompt in enumerate(prompts)]


def _reading(model: LanguageModel, prompt: str | tuple[int, ...], excluded: tuple[int, ...], place: str) -> Reading:
    ids = list(prompt) if not isinstance(prompt, str) else model.encode([prompt])[0]
    if isinstance(prompt, str) and ids and (first := text.separator(model.tokenizer)) is not None:
        ids = [first, *ids]
    if not ids:
        raise InvalidSpec("the text has no tokens", place)
    _check_ids(model, ids, place)
    if len(ids) > (longest := model.bridge.cfg.n_ctx):
        raise InvalidSpec(f"has {len(ids)} tokens, and the model's context is {longest}", place)
    tokens = np.array(ids, np.int32)
    keep = keep_mask(tokens[None], excluded)[0]
    if not keep.any():
        raise InvalidSpec("has only tokens that are left out (exclude)", place)
    return Reading(tokens, keep, place)


def _check_ids(model: LanguageModel, ids: Sequence[int], place: str) -> None:
    if (largest := max(ids)) >= model.n_vocab:
        raise InvalidSpec(f"there is a token {largest}, and the model's are 0 to {model.n_vocab - 1}", place)


def token_id(model: LanguageModel, token: str | int, place: str) -> int:
    """The id of a token. Raises InvalidSpec if a text is not one token, or the model has no such token."""
    ids = [token] if isinstance(token, int) else model.encode([token])[0]
    if len(ids) != 1:
        raise InvalidSpec(f"{token!r} is {len(ids)} tokens ({' '.join(map(str, ids))}), and one is needed", place)
    _check_ids(model, ids, place)
    return ids[0]
