"""Prompts for an explainer, a language model of the user's choice: one JSON line for each latent, with its examples."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sae_service.analysis.records import Latent, Passage

SHOWN = 10
"""Examples in a prompt: the strongest ones."""
ASKED = (
    "Below are excerpts of text on which one latent of a sparse autoencoder is active. The tokens on which it is active stand "
    "between « and », those on which it is strongest in each excerpt between «« and »». Say in one short phrase what these tokens, "
    "or the texts before them, have in common."
)


def pieces(about: Mapping[str, Any], latents: Iterable[Latent]) -> Iterator[str]:
    """A line for each latent that has fired: a prompt, and the examples as tokens and activations."""
    for latent in latents:
        if latent.passages:
            yield json.dumps(prompt(about, latent), ensure_ascii=False) + "\n"


def prompt(about: Mapping[str, Any], latent: Latent) -> dict[str, Any]:
    """The line of one latent."""
    best = [one for one in latent.passages if one.quantile is None]
    excerpts = "\n".join(f"{index}. {marked(one)}" for index, one in enumerate(best[:SHOWN], 1))
    raised = ", ".join(repr(one.token) for one in latent.raised)
    return {
        "sae": about["name"],
        "latent": latent.latent,
        "prompt": f"{ASKED}\n\n{excerpts}\n" + (f"\nIt makes these tokens more likely: {raised}\n" if raised else ""),
        "examples": [
            {"quantile": one.quantile, "tokens": list(one.tokens), "activations": list(one.activations)} for one in latent.passages
        ],
    }


def marked(one: Passage) -> str:
    """The text with marks around the tokens on which the latent is active."""
    strongest = max(one.activations)
    return "".join(
        f"««{token}»»" if value == strongest else f"«{token}»" if value > 0 else token
        for token, value in zip(one.tokens, one.activations, strict=True)
    )
