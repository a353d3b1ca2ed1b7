"""A job that attributes a difference of logits to latents, as its user writes it."""

from typing import Literal

from pydantic import Field, model_validator

from sae_service.schema import SPEC_VERSION, refuse
from sae_service.spec.prompted import Contrast, Prompt, PromptedSpec


class AttributionSpec(PromptedSpec):
    """A job that says what each latent of some SAEs contributes to the difference of two logits."""

    schema_version: Literal[2] = SPEC_VERSION  # pyright: ignore[reportAssignmentType]
    kind: Literal["attribution"]
    contrasts: tuple[Contrast, ...] = Field(
        min_length=1, max_length=256, description="Two tokens for each prompt, or two for all: the logit of the first minus that "
        "of the second is what is attributed.",
    )  # fmt: skip
    position: int = Field(
        default=-1, ge=-(1 << 20), lt=1 << 20, description="Whose next-token logits: counted from 0, or from -1 for the last."
    )
    counterfactuals: tuple[Prompt, ...] = Field(
        default=(), max_length=256, description="For each prompt another one of as many tokens, from whose run activations are "
        "taken over. Left out: latents are taken away.",
    )  # fmt: skip
    final_norm: Literal["live", "frozen"] = Field(
        default="live", description="frozen: the scale of the final norm is that of the clean run, so the difference of logits is "
        "linear in the last residual stream.",
    )  # fmt: skip
    top: int = Field(default=200, ge=1, le=10_000, description="Rows of the table: latents at positions, of the strongest effects.")
    exact: int = Field(
        default=50, ge=0, le=1000, description="So many of them are patched one by one as well, and corrected for the softmax."
    )
    graph: int = Field(default=20, ge=0, le=200, description="So many of each prompt are the nodes of a graph; 0: no graph.")

    @model_validator(mode="after")
    def _check_prompts(self) -> "AttributionSpec":
        if self.job is None and not self.folders:
            refuse(("job",), "must name a finished job, or else folders must name SAEs", self.job)
        if len(self.contrasts) not in (1, len(self.prompts)):
            refuse(("contrasts",), f"must be one, or as many as there are prompts ({len(self.prompts)})", None)
        if self.counterfactuals and len(self.counterfactuals) != len(self.prompts):
            refuse(("counterfactuals",), f"must be as many as there are prompts ({len(self.prompts)})", None)
        for index, (prompt, other) in enumerate(zip(self.prompts, self.counterfactuals, strict=False)):
            if not isinstance(prompt, str) and not isinstance(other, str) and len(prompt) != len(other):
                refuse(("counterfactuals", index), f"must have as many tokens as its prompt ({len(prompt)})", None)
        return self

    def contrast_of(self, prompt: int) -> tuple[str | int, str | int]:
        """The two tokens of a prompt."""
        return self.contrasts[prompt if len(self.contrasts) > 1 else 0]

    def contrast_place(self, prompt: int) -> str:
        """The field that has them."""
        return f"/contrasts/{prompt if len(self.contrasts) > 1 else 0}"
