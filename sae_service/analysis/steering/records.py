"""What steering does to a model, as the service shows it. Losses and divergences are in nats.

Means are over the prompts, and of each over the positions from the first edited one on that count. Logits are those after
the last position.
"""

from typing import Any, Literal

from pydantic import Field

from sae_service.schema import Frozen

Profile = tuple[float, ...]
"""A number for each coefficient."""


class PromptRead(Frozen):
    """A prompt as the model has read it, undisturbed."""

    tokens: tuple[int, ...]
    texts: tuple[str, ...]
    activations: tuple[float, ...] = Field(description="How much of the direction there is: the latent's activations.")
    loss: float | None = Field(description="Null if no token comes after an edited one.")


class LogitProfile(Frozen):
    """What happens to the logit of a token."""

    id: int
    token: str
    clean: float
    change: Profile


class PartProfile(Frozen):
    """What one component carries to the difference of two logits."""

    name: str
    change: Profile
    cluster: int | None = None


class ContrastProfile(Frozen):
    """What happens to the difference of two logits, and by which components: their changes add up to `change`."""

    first: int
    second: int
    tokens: tuple[str, str]
    clean: float
    change: Profile
    parts: tuple[PartProfile, ...] = Field(description="direct, each later attention and MLP by its layer, final_norm, other.")


class ErrorTerm(Frozen):
    """Mean next-token losses with something else in place of what the SAE reconstructs, at all positions that count."""

    positions: int
    error_share: float = Field(description="Squared norms of what is left over, over those of the rows.")
    clean: float
    spliced: float = Field(description="The reconstruction alone.")
    error_added_back: float = Field(description="The reconstruction plus the error: clean, to rounding.")
    error_removed: float = Field(description="The activation minus the error: spliced, to rounding.")
    reconstruction_removed: float = Field(description="The error alone.")


class Continuation(Frozen):
    """What the model wrote after a prompt (counted from 0) at a coefficient."""

    prompt: int
    coefficient: float
    tokens: tuple[int, ...]
    text: str | None = Field(description="Null if the model has no tokenizer.")


class Steering(Frozen):
    """What adding a direction, times each coefficient, does."""

    object: Literal["job.steering"] = "job.steering"
    model: str
    sae: str | None = Field(description="The SAE's name; null for a direction that was given.")
    latent: int | None
    hook_names: tuple[str, ...] = Field(description="Where it is added.")
    mode: Literal["add", "clamp", "ablate"]
    unit: Literal["raw", "row_norm"]
    unit_size: float = Field(description="Of one coefficient, in the units of the model's activations.")
    direction_length: float = Field(description="Of the latent's decoder row.")
    row_norm: float = Field(description="The mean norm of the prompts' rows at the hook point.")
    largest_activation: float = Field(description="Of the latent on the prompts.")
    coefficients: Profile
    prompts: tuple[PromptRead, ...]
    clean_loss: float | None
    loss: tuple[float | None, ...]
    kl: Profile
    logits: tuple[LogitProfile, ...]
    contrast: ContrastProfile | None
    error_term: ErrorTerm | None
    continuations: tuple[Continuation, ...]
    provenance: dict[str, Any]
