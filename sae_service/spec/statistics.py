"""A job that measures what the activations of a model are like, as its user writes it."""

from typing import Any, Literal

from pydantic import Field, model_validator

from sae_service.schema import SPEC_VERSION, refuse
from sae_service.spec.queued import MAX_TOKENS, QueuedSpec
from sae_service.spec.saes import HookName
from sae_service.spec.stream import StreamSpec


class StatisticsSpec(QueuedSpec):
    """A job that passes over text once and measures a model's activations, attention and weights."""

    schema_version: Literal[2] = SPEC_VERSION  # pyright: ignore[reportAssignmentType]
    kind: Literal["statistics"]
    stream: StreamSpec = Field(description="The model, the text, of which the whole split is read, context_size and exclude.")
    hook_names: tuple[HookName, ...] = Field(
        default=(), max_length=256, description="The hook points that are measured. Default: the residual stream after each block."
    )
    tokens: int = Field(default=200_000, gt=0, le=MAX_TOKENS, description="Tokens that are read; all that there are, if fewer.")
    attention_tokens: int = Field(
        default=32_768, ge=0, le=MAX_TOKENS,
        description="Tokens, the first ones, whose attention is measured, in a pass of its own; 0: none.",
    )  # fmt: skip
    cut_positions: int = Field(
        default=128, ge=0, le=1 << 14, description="Positions at which the model reads again, with less and less context; 0: none."
    )
    log_every: int = Field(default=10, gt=0, description="Batches of text between two reports of progress.")

    @model_validator(mode="before")
    @classmethod
    def _fill_in_stream(cls, data: Any) -> Any:
        """A stream that is only read once has as many tokens as the job, and its batches have no meaning."""
        stream = data.get("stream") if isinstance(data, dict) else None
        if not isinstance(stream, dict):
            return data
        return {**data, "stream": {"batch": 1, "tokens": data.get("tokens", cls.model_fields["tokens"].default), **stream}}

    @model_validator(mode="after")
    def _check_source(self) -> "StatisticsSpec":
        if self.stream.synthetic is not None:
            refuse(("stream", "synthetic"), "has no model whose activations could be measured", None)
        if self.stream.cache != "off":
            refuse(("stream", "cache"), "has no use here: cached rows are without their positions; leave it out", self.stream.cache)
        if len(set(self.hook_names)) < len(self.hook_names):
            refuse(("hook_names",), "must name each hook point once", self.hook_names)
        if self.tokens < self.stream.context_size:
            refuse(("tokens",), f"must be at least context_size ({self.stream.context_size})", self.tokens)
        return self

    @property
    def total_steps(self) -> int:
        """Batches of text; as many as there are, if the text is long enough."""
        return -(-(self.tokens // self.stream.context_size) // self.stream.prompts)

    @property
    def total_tokens(self) -> int:
        """Tokens in whole rows of the model."""
        return self.tokens // self.stream.context_size * self.stream.context_size
