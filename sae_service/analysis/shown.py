"""Latents out of their columns, as the service shows them, one by one or as parts of a list."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from sae_service.analysis.records import Aligned, Bins, Latent, LatentEntry, Neighbour, Neuron, Order, Passage, Scored, Sort
from sae_service.analysis.results import Table
from sae_service.errors import InvalidSpec, NotFound
from sae_service.jobs.records import Explanation

FIRES_ON, RAISES = 5, 5
"""Tokens of each in a list."""
DIGITS, EXACT = 6, 9
"""Of an activation, and of what may be asked for again: so many digits say exactly which float32 it is."""


@dataclass(frozen=True)
class Wanted:
    """Which latents, and in which order.

    Attributes:
        token: only those that fire most strongly on this token in one of their strongest passages.
        raises: only those that raise this token among their first.
    """

    sort: Sort = "latent"
    order: Order = "asc"
    token: str | None = None
    raises: str | None = None
    min_density: float = 0.0
    max_density: float = 1.0


def check(table: Table, latent: int, param: str = "latent") -> None:
    """Raises NotFound for a latent that is not there."""
    if not 0 <= latent < table.n_latents:
        raise NotFound(f"there is no latent {latent}; the SAE has 0 to {table.n_latents - 1}", param=param)


def chosen(table: Table, wanted: Wanted, among: Sequence[int] | None = None) -> Int[np.ndarray, " latents"]:
    """The numbers of the latents that are wanted, in order.

    Args:
        among: only these.

    Raises:
        InvalidSpec: a token is none of the model's.
    """
    density = table.whole("density")
    fits = (density >= np.float32(wanted.min_density)) & (density <= np.float32(wanted.max_density))
    if among is not None:
        fits &= np.isin(np.arange(len(density)), among)
    for word, column, param in ((wanted.token, "peak_tokens", "token"), (wanted.raises, "raised_tokens", "raises")):
        if word is not None:
            fits &= _with_token(table, word, column, param)
    found = np.flatnonzero(fits)
    if wanted.sort == "latent":
        return found if wanted.order == "asc" else found[::-1]
    values = table.whole(wanted.sort)[found]
    return found[np.lexsort((found, values if wanted.order == "asc" else -values))]


def _with_token(table: Table, word: str, column: str, param: str) -> Bool[np.ndarray, " d_sae"]:
    """Which latents have a token in a column. Spaces around it do not matter."""
    ids = [index for index, text in enumerate(table.vocabulary) if text.strip() == word.strip()]
    if not ids:
        raise InvalidSpec(f"{word!r} is no token of the model", param, "Search for a part of it: a word may be several tokens.")
    if column not in table:
        raise InvalidSpec("is not known: the SAE does not write into the residual stream", param)
    return np.any(np.isin(table.whole(column), ids), axis=1, keepdims=True)[:, 0]


def after(found: Int[np.ndarray, " latents"], latent: int | None, n: int) -> Int[np.ndarray, " part"]:
    """The next `n` behind a latent. Raises NotFound if that is not among them."""
    first = 0
    if latent is not None:
        places = np.flatnonzero(found == latent)
        if not len(places):
            raise NotFound(f"latent {latent} is not in the list")
        first = int(places[0]) + 1
    return found[first : first + n]


LISTED = ("count", "density", "largest", "mean", "peak_tokens", "raised_tokens")


def entries(table: Table, latents: Int[np.ndarray, " some"], explained: Mapping[int, str]) -> list[LatentEntry]:
    """What a list shows of some latents."""
    names = [name for name in LISTED if name in table]
    found = table.rows({name: [(int(latent), int(latent) + 1) for latent in latents] for name in names}) if len(latents) else {}
    rows = ({name: values[index] for name, values in found.items()} for index in range(len(latents)))
    return [LatentEntry(**_entry(table, int(latent), row, explained)) for latent, row in zip(latents, rows, strict=True)]


def _entry(table: Table, latent: int, row: Mapping[str, Any], explained: Mapping[int, str]) -> dict[str, Any]:
    words = table.vocabulary
    peaks = dict.fromkeys(words[token] for token in row["peak_tokens"] if token >= 0)
    return {
        "latent": latent,
        "count": int(row["count"]),
        "density": number(row["density"], EXACT),
        **{name: number(row[name]) for name in ("largest", "mean")},
        "fires_on": tuple(peaks)[:FIRES_ON],
        "raises": tuple(words[token] for token in row.get("raised_tokens", ())[:RAISES]),
        "explanation": explained.get(latent),
    }


def latent(table: Table, which: int, explanations: Sequence[Explanation] = ()) -> Latent:
    """All that is known of one latent. Raises NotFound.

    Args:
        explanations: of it, the best first.
    """
    check(table, which)
    row = table.latent(which)

    def tokens(tokens: str, scores: str) -> tuple[Scored, ...]:
        pairs = zip(row[tokens].tolist(), row[scores].tolist(), strict=True) if tokens in row else ()
        return tuple(Scored(token=table.vocabulary[token], id=token, score=number(score)) for token, score in pairs)

    return Latent(
        **_entry(table, which, row, {which: explanations[0].text} if explanations else {}),
        explanations=tuple(explanations),
        passages=_passages(table, row),
        histogram=Bins(start=0, width=number(row["histogram_width"]), counts=_filled(row["histogram"])),
        raised=tokens("raised_tokens", "raised_logits"),
        lowered=tokens("lowered_tokens", "lowered_logits"),
        logits=_logits(row),
        nearest=_neighbours(row, "nearest_latents", "nearest_cosines"),
        coactive=_neighbours(
            row, "coactive_latents", "coactive_correlations",
            lambda index: {"count": int(row["coactive_counts"][index]), "cosine": number(row["coactive_cosines"][index])},
        ),
        neurons=tuple(
            Neuron(neuron=int(neuron), correlation=number(correlation), cosine=number(cosine))
            for neuron, correlation, cosine in zip(*(row[name] for name in NEURONS), strict=True) if neuron >= 0
        ),
        aligned=tuple(
            Aligned(neuron=int(neuron), weight=number(weight), share=number(share))
            for neuron, weight, share in zip(*(row[name] for name in ALIGNED), strict=True)
        ),
        reads=tokens("read_tokens", "read_scores"),
        reads_latents=_neighbours(
            row, "read_latents", "read_cosines", lambda index: {"sae": table.about["saes"][row["read_latent_saes"][index]]}
        ),
    )  # fmt: skip


NEURONS = ("neurons", "neuron_correlations", "neuron_cosines")
ALIGNED = ("aligned_neurons", "aligned_weights", "aligned_shares")


def _filled(counts: np.ndarray) -> tuple[int, ...]:
    """The counts up to the last bin that holds anything."""
    filled = np.flatnonzero(counts)
    return tuple(counts[: filled[-1] + 1].tolist()) if len(filled) else ()


def _logits(row: Mapping[str, Any]) -> Bins | None:
    if "logit_histogram" not in row:
        return None
    counts, (lowest, highest) = row["logit_histogram"], row["logit_range"].tolist()
    return Bins(start=number(lowest), width=number((highest - lowest) / len(counts)), counts=tuple(counts.tolist()))


def _neighbours(
    row: Mapping[str, Any], latents: str, similarities: str, more: Callable[[int], dict[str, Any]] = lambda _: {}
) -> tuple[Neighbour, ...]:
    if latents not in row:
        return ()
    pairs = enumerate(zip(row[latents].tolist(), row[similarities].tolist(), strict=True))
    return tuple(
        Neighbour(latent=latent, similarity=number(found), **more(index)) for index, (latent, found) in pairs if latent >= 0
    )


def _passages(table: Table, row: Mapping[str, Any]) -> tuple[Passage, ...]:
    """The passages in the slots of a latent."""
    slots, offsets = np.flatnonzero(row["passages"] >= 0), row["offsets"]
    if not len(slots):
        return ()
    first, last = int(offsets[0]), int(offsets[-1])
    entries = table.rows({"positions": [(first, last)], "activations": [(first, last)]})
    tokens = table.rows({
        name: [(int(index), int(index) + 1) for index in row["passages"][slots]] for name in ("passage_tokens", "passage_numbers")
    })  # fmt: skip
    best, per_quantile, found = table.about["best"], table.about["per_quantile"], []
    for index, slot in enumerate(slots.tolist()):
        ids = tokens["passage_tokens"][index]
        acts = np.zeros(len(ids), np.float32)
        part = slice(int(offsets[slot]) - first, int(offsets[slot + 1]) - first)
        acts[entries["positions"][part]] = entries["activations"][part]
        n_tokens = int((ids >= 0).sum())
        found.append(Passage(
            passage=int(tokens["passage_numbers"][index]),
            quantile=None if slot < best else 10 - (slot - best) // per_quantile,
            largest=number(acts.max()),
            position=int(acts.argmax()),
            tokens=tuple(table.vocabulary[token] for token in ids[:n_tokens]),
            ids=tuple(ids[:n_tokens].tolist()),
            activations=tuple(number(value) for value in acts[:n_tokens]),
        ))  # fmt: skip
    return tuple(found)


def number(value: Any, digits: int = DIGITS) -> float:
    """A float32 with the digits that matter."""
    return float(f"{float(value):.{digits}g}")
