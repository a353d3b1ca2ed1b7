"""The results of a scan as they are kept: means over the prompts in JSON, and those of each prompt as columns."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from safetensors.numpy import save

from sae_service.activations import tokenizer as text
from sae_service.activations.model import LanguageModel
from sae_service.analysis.prompts import Reading
from sae_service.analysis.steering.parts import Split, clusters
from sae_service.analysis.steering.records import ContrastProfile, LogitProfile, PartProfile, PromptRead
from sae_service.analysis.steering.scan import OfPrompt


def columns(found: Sequence[OfPrompt]) -> bytes:
    """Arrays of [prompts, coefficients, ...] in the format of safetensors."""
    names = ("loss", "kl", "logits", "total", "parts")
    return save({name: np.stack([getattr(one, name) for one in found]).astype(np.float32) for name in names})


def profiles(found: Sequence[OfPrompt]) -> dict[str, Any]:
    """Losses and divergences, means over the prompts; losses over those that have some."""
    losses = np.array([one.loss for one in found if np.isfinite(one.clean_loss)])
    clean = [one.clean_loss for one in found if np.isfinite(one.clean_loss)]
    n = len(found[0].kl)
    return {
        "clean_loss": float(np.mean(clean)) if clean else None,
        "loss": losses.mean(axis=0).tolist() if clean else [None] * n,
        "kl": np.mean([one.kl for one in found], axis=0).tolist(),
    }


def prompts_read(model: LanguageModel, read: Sequence[Reading], found: Sequence[OfPrompt]) -> tuple[PromptRead, ...]:
    """The prompts, and how much of the direction there is in them."""
    texts = text.strings(model.tokenizer, model.n_vocab)
    return tuple(
        PromptRead(
            tokens=tuple(one.tokens.tolist()), texts=tuple(texts[token] for token in one.tokens),
            activations=tuple(of.there.tolist()), loss=of.clean_loss if np.isfinite(of.clean_loss) else None,
        )
        for one, of in zip(read, found, strict=True)
    )  # fmt: skip


def logit_profiles(model: LanguageModel, followed: Sequence[int], found: Sequence[OfPrompt]) -> tuple[LogitProfile, ...]:
    """What happens to the logits of some tokens, the first ones that were followed."""
    texts = text.strings(model.tokenizer, model.n_vocab)
    clean = np.mean([one.clean_logits for one in found], axis=0)
    change = np.mean([one.logits for one in found], axis=0)
    return tuple(
        LogitProfile(id=token, token=texts[token], clean=float(clean[i]), change=tuple(change[:, i].tolist()))
        for i, token in enumerate(followed)
    )


def contrast_profile(
    model: LanguageModel, split: Split, pair: tuple[int, int], found: Sequence[OfPrompt], n_clusters: int
) -> ContrastProfile:
    """What happens to the difference of the logits of two tokens, part by part."""
    texts = text.strings(model.tokenizer, model.n_vocab)
    parts = np.mean([one.parts for one in found], axis=0)
    groups = clusters(parts, split.names, n_clusters) if n_clusters else {}
    return ContrastProfile(
        first=pair[0], second=pair[1], tokens=(texts[pair[0]], texts[pair[1]]),
        clean=float(np.mean([one.clean_difference for one in found])),
        change=tuple(np.mean([one.total for one in found], axis=0).tolist()),
        parts=tuple(
            PartProfile(name=name, change=tuple(change), cluster=groups.get(name))
            for name, change in zip(split.names, parts.T.tolist(), strict=True)
        ),
    )  # fmt: skip
