"""A job that steers a model along a direction, as its user writes it."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sae_service.schema import SPEC_VERSION, Frozen, refuse
from sae_service.spec.prompted import Contrast, PromptedSpec, Token
from sae_service.spec.saes import HookName

LARGEST = 1e30
Coefficient = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]


class ScanSpec(Frozen):
    """Coefficients at equal distances."""

    first: Coefficient = -10.0
    last: Coefficient = 10.0
    count: int = Field(default=128, ge=1, le=4096, description="How many; an odd number has the middle among them.")

    @property
    def values(self) -> tuple[float, ...]:
        """The coefficients."""
        step = (self.last - self.first) / max(self.count - 1, 1)
        return tuple(self.last if index and index == self.count - 1 else self.first + index * step for index in range(self.count))


class ContinuationsSpec(Frozen):
    """Text that the steered model writes."""

    coefficients: tuple[Coefficient, ...] = Field(min_length=1, max_length=32, description="At which it writes; 0: unsteered.")
    tokens: int = Field(default=20, ge=1, le=512, description="Tokens of each continuation.")
    temperature: float = Field(default=1.0, ge=0, le=100, description="0: the likeliest token each time.")
    seed: int = Field(default=0, ge=0, lt=1 << 32, description="The same seed draws the same text.")


class SteeringSpec(PromptedSpec):
    """A job that adds a direction to a model's activations, times each of many coefficients, and says what that does."""

    schema_version: Literal[2] = SPEC_VERSION  # pyright: ignore[reportAssignmentType]
    kind: Literal["steering"]
    latent: int | None = Field(default=None, ge=0, lt=1 << 24, description="The SAE's latent, whose decoder row is the direction.")
    direction: tuple[Coefficient, ...] | None = Field(
        default=None, min_length=1, max_length=1 << 16, description="A direction in place of an SAE's; its length has no meaning."
    )
    hook_name: HookName | None = Field(default=None, description="The hook point of a direction, such as blocks.8.hook_resid_post.")
    mode: Literal["add", "clamp", "ablate"] = Field(
        default="add", description="add: x + c v, with v the direction at length 1. clamp: x + (c - f) d sets the latent's "
        "activation f to c, with d its decoder row. ablate: x - c f d takes the share c of what the latent writes away. Of a "
        "direction, d is v and f is x v.",
    )  # fmt: skip
    unit: Literal["raw", "row_norm"] = Field(
        default="raw", description="Of the coefficients of add and clamp. raw: that of the model's activations, in which latents "
        "are measured too. row_norm: the mean norm of the prompts' rows at the hook point.",
    )  # fmt: skip
    coefficients: ScanSpec | Annotated[tuple[Coefficient, ...], Field(min_length=1, max_length=4096)] = Field(
        default=ScanSpec(), description="A list, or {first, last, count} at equal distances."
    )
    positions: Literal["all", "last"] = Field(default="all", description="Which positions of a prompt are edited.")
    logits: tuple[Token, ...] = Field(default=(), max_length=64, description="Tokens whose logits after the prompt are followed.")
    contrast: Contrast | None = Field(
        default=None, description="Two tokens: the difference of their logits after the prompt is split by what carries it there."
    )
    continuations: ContinuationsSpec | None = Field(default=None, description="Has the steered model go on with each prompt.")
    clusters: int = Field(
        default=0, ge=0, le=16, description="Groups of components whose effects have profiles of one shape; 0: none."
    )

    @model_validator(mode="after")
    def _check_direction(self) -> "SteeringSpec":
        if (self.latent is None) == (self.direction is None):
            refuse(("latent",), "must be given, or else a direction with its hook_name", self.latent)
        if self.direction is not None:
            if self.hook_name is None:
                refuse(("hook_name",), "is required with a direction", None)
            if self.folders or self.saes:
                refuse(("folders" if self.folders else "saes",), "have a latent for a direction; leave out one of the two", None)
            if not any(self.direction):
                refuse(("direction",), "must not be all zeros", None)
        elif self.hook_name is not None:
            refuse(("hook_name",), "is that of a direction; an SAE has its own", self.hook_name)
        elif len(self.names) > 1 or (self.job is None and not self.folders):
            refuse(("folders" if self.job is None else "saes",), "must name the one SAE that the latent is of", self.names)
        if self.mode == "ablate" and self.unit != "raw":
            refuse(("unit",), "has no meaning for ablate, whose coefficients are shares", self.unit)
        if self.clusters and self.contrast is None:
            refuse(("contrast",), "is required for clusters: they are of its parts", None)
        return self

    @property
    def scanned(self) -> tuple[float, ...]:
        """The coefficients of the scan."""
        return self.coefficients.values if isinstance(self.coefficients, ScanSpec) else self.coefficients
