"""Text as whoever looks at latents reads it: rows of tokens, and the activations at the positions that count."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from sae_service.activations.buffer import Reading
from sae_service.activations.documents import Part, no_text
from sae_service.activations.model import LanguageModel
from sae_service.activations.norms import norms
from sae_service.activations.tokens import Cursor, PackedTokens, Prompts
from sae_service.errors import DataNotFound, InvalidSpec
from sae_service.readable import Roots
from sae_service.spec import StreamSpec, fields

MEDIAN_ROWS = 1 << 13
"""So many of the first rows tell the median norm."""


@dataclass(frozen=True)
class Passages:
    """Rows of tokens that went through the model at once.

    Attributes:
        keep: the positions that count: neither excluded nor, where there are limits, too long a row at any hook point.
        rows: the activations at the positions in `keep`, in reading order, by hook point.
        start: where reading again yields the same.
    """

    tokens: Int[np.ndarray, "prompts context_size"]
    keep: Bool[np.ndarray, "prompts context_size"]
    rows: dict[str, Float[np.ndarray, "kept d_in"]]
    start: Cursor


def reading(stream: StreamSpec, part: Part, model: LanguageModel, hook_names: tuple[str, ...], roots: Roots) -> Reading:
    """A model that reads a part of a stream's dataset once, as training reads it."""
    packed = PackedTokens(stream.text_source[1], part, model, stream.context_size, stream.prompts, False, roots)
    return Reading(model, packed, hook_names, model.excluded_tokens(stream.exclude))


def passages(
    source: Reading, start: Cursor, n_prompts: int, limits: Mapping[str, float]
) -> Iterator[Passages]:
    """The text from a cursor on, until there are `n_prompts` rows of tokens or no more text.

    Args:
        limits: the largest norm of a row, by hook point.

    Raises:
        DataNotFound, InvalidSpec: it cannot be read, or nothing of it counts.
    """
    left = n_prompts
    for prompts, at in source.prompts(start):
        if left <= 0:
            return
        cut = Prompts(prompts.tokens[:left], prompts.trained[:left])
        left -= len(cut.tokens)
        yield _within(source, cut, at, limits)


def _within(source: Reading, prompts: Prompts, at: Cursor, limits: Mapping[str, float]) -> Passages:
    """The rows of some prompts that are short enough at every hook point."""
    found, keep = source.rows(prompts), prompts.trained
    if limits:
        fits = torch.stack([norms(found[name]) <= limit for name, limit in limits.items()]).all(dim=0)
        found = {name: rows[fits] for name, rows in found.items()}
        keep = keep.copy()
        keep[keep] = fits.cpu().numpy()
    return Passages(prompts.tokens, keep, {name: rows.float().cpu().numpy() for name, rows in found.items()}, at)


def norm_limits(source: Reading, multiple: float | None) -> dict[str, float]:
    """The largest norm that a row may have, by hook point: so many times the median of the text's first rows.

    Nothing without a multiple.
    """
    if multiple is None:
        return {}
    found: dict[str, list[np.ndarray]] = {name: [] for name in source.hook_names}
    n_rows = 0
    for batch in passages(source, Cursor(), 1 << 30, {}):
        for name, rows in batch.rows.items():
            found[name].append(np.linalg.norm(rows, axis=1))
        n_rows += int(batch.keep.sum())
        if n_rows >= MEDIAN_ROWS:
            break
    return {name: multiple * float(np.median(np.concatenate(values))) for name, values in found.items() if values}


def too_little(source: Reading) -> DataNotFound | InvalidSpec:
    """What to say of text that does not fill one row, or of which no position counts."""
    packed = source.tokens
    if not packed.documents.n_seen:
        return no_text(packed.spec, packed.documents, packed.split)
    where = f"split {packed.split!r} of {packed.spec.path}"
    if not packed.documents.n_chosen:
        return InvalidSpec(f"of {where} no document is held out.", fields.DATASET_PATH, "Name a dataset, which is read whole.")
    said = f"{where} has no row of {packed.context_size} tokens in which a position counts."
    return InvalidSpec(said, fields.DATASET_PATH, "Name longer text.")


def whole(stream: StreamSpec) -> StreamSpec:
    """The stream whose held-out part is all of the split that it names."""
    _, dataset = stream.text_source
    return stream.model_copy(update={"dataset": dataset.model_copy(update={"held_out_split": dataset.split})})
