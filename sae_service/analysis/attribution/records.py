"""What latents contribute to differences of logits, as the service shows it.

An effect is the difference of the logits with the latent patched minus that without: below 0 for a latent that speaks for the
first token and is taken away.
"""

from typing import Any, Literal

from pydantic import Field

from sae_service.schema import Frozen


class PromptRead(Frozen):
    """A prompt as the model has read it."""

    tokens: tuple[int, ...]
    texts: tuple[str, ...]
    first: int
    second: int
    contrast: tuple[str, str]
    position: int = Field(description="After which the logits are read, from 0.")
    difference: float = Field(description="Of the two logits.")
    counterfactual: float | None = Field(description="Of those after the counterfactual prompt.")


class SAETotal(Frozen):
    """Sums over the latents of one SAE at all positions of one prompt that count."""

    prompt: int
    sae: str
    n: int = Field(description="Latents at positions that the patch changes.")
    effect: float = Field(description="Of all latents, to the first order.")
    error_effect: float = Field(description="Of what the SAE leaves over, to the first order.")


class LatentNode(Frozen):
    """A latent at a position of a prompt."""

    prompt: int
    sae: str
    latent: int
    position: int
    token: str
    activation: float
    patched: float = Field(description="The activation that it is patched with.")
    effect: float = Field(description="By attribution patching: to the first order.")
    grad_drop: float = Field(
        description="The mean of the effect's size with the gradient through one layer dropped at a time (over layers but one)."
    )
    qk: float | None = Field(description="The effect with the softmax of moved queries and keys computed anew.")
    exact: float | None = Field(description="The effect of patching it alone.")


class Correlations(Frozen):
    """Of an approximation with the exact effects, over the latents that have some. Null for fewer than three, or equal ones."""

    pearson: float | None
    spearman: float | None
    mean_error: float | None = Field(description="Mean absolute difference; null where the two are not of one kind.")


class Edge(Frozen):
    """From a latent to one of a later SAE: what the first adds to the pre-activation of the second, to the first order."""

    source: int = Field(description="Index of a node.")
    target: int
    weight: float


class Attribution(Frozen):
    """What each latent contributes."""

    object: Literal["job.attribution"] = "job.attribution"
    model: str
    saes: tuple[str, ...]
    patched_with: Literal["zero", "counterfactual"]
    final_norm: Literal["live", "frozen"]
    prompts: tuple[PromptRead, ...]
    totals: tuple[SAETotal, ...]
    nodes: tuple[LatentNode, ...] = Field(description="The largest effects first.")
    correlations: dict[str, Correlations] = Field(
        description="Of effect and qk with exact; of the sizes of effect and of grad_drop with that of exact."
    )
    edges: tuple[Edge, ...]
    provenance: dict[str, Any]
