"""A job that looks at what the latents of trained SAEs do, as its user writes it."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sae_service.schema import SPEC_VERSION, FormatName, Frozen, Name, must, refuse
from sae_service.spec.queued import MAX_TOKENS, QueuedSpec
from sae_service.spec.saes import HookName
from sae_service.spec.stream import DatasetSpec, StreamSpec

JobId = Annotated[str, Field(pattern=r"^[!-.0-~]{1,64}$"), must("be the id of a job")]


class LatentsPart(Frozen):
    """How much text latents are looked at on, and how much of it is kept."""

    tokens: int = Field(default=1_000_000, gt=0, le=MAX_TOKENS, description="Tokens that are read; all that there are, if fewer.")
    best: int = Field(default=20, ge=1, le=100, description="Passages of each latent in which it fires most strongly.")
    per_quantile: int = Field(
        default=5, ge=0, le=100, description="Passages from each of ten quantiles: those in which a latent fires, by its largest "
        "activation there, are cut into tenths.",
    )  # fmt: skip
    passage_tokens: int = Field(
        default=128, ge=8, le=1024, description="Tokens of a passage. The model reads whole rows; longer ones are cut into such."
    )
    seed: int = Field(default=0, ge=0, lt=1 << 32, description="Decides which passages of a quantile are kept.")

    def n_batches(self, stream: StreamSpec) -> int:
        """Batches of text; as many as there are, if the text is long enough."""
        return -(-(self.tokens // stream.context_size) // stream.prompts)

    def whole_tokens(self, stream: StreamSpec) -> int:
        """Tokens in whole rows of the model."""
        return self.tokens // stream.context_size * stream.context_size

    def check_length(self, stream: StreamSpec, *place: str) -> None:
        """Refuses fewer tokens than a row of the model has, in the field at a place."""
        if self.tokens < stream.context_size:
            refuse((*place, "tokens"), f"must be at least context_size ({stream.context_size})", self.tokens)


class FolderSpec(Frozen):
    """An SAE in a folder, whoever has trained it."""

    path: Annotated[str, Field(pattern=r"^[/.~]"), must("be the path of a folder, which starts with '/', '.' or '~'")]
    hook_name: HookName = Field(description="The hook point that it reads, such as blocks.8.hook_resid_post.")
    format: FormatName | None = Field(default=None, description="null: the one whose files are there.")
    name: Name = Field(description="Unique in the job.")


class LatentsSpec(QueuedSpec, LatentsPart):
    """A job that passes over text once and looks at the latents of one or more SAEs of one stream."""

    schema_version: Literal[2] = SPEC_VERSION  # pyright: ignore[reportAssignmentType]
    kind: Literal["latents"]
    job: JobId | None = Field(default=None, description="The finished job whose SAEs are looked at.")
    saes: tuple[Name, ...] = Field(default=(), max_length=64, description="Which of its SAEs; all, if left out.")
    folders: tuple[FolderSpec, ...] = Field(default=(), max_length=64, description="SAEs in folders, in place of a job's.")
    stream: StreamSpec | None = Field(
        default=None, description="The model and the text of SAEs in folders. Those of a job are the job's own."
    )
    dataset: DatasetSpec | None = Field(
        default=None, description="The text, of which the whole split is read. Default: the held-out text of the stream."
    )
    log_every: int = Field(default=10, gt=0, description="Batches of text between two reports of progress.")

    @model_validator(mode="before")
    @classmethod
    def _fill_in_stream(cls, data: Any) -> Any:
        """A stream that is only read once has as many tokens as the job, and its batches have no meaning."""
        stream = data.get("stream") if isinstance(data, dict) else None
        if not isinstance(stream, dict):
            return data
        tokens = data.get("tokens", LatentsPart.model_fields["tokens"].default)
        return {**data, "stream": {"batch": 1, "tokens": tokens, **stream}}

    @model_validator(mode="after")
    def _check_source(self) -> "LatentsSpec":
        if (self.job is None) == (not self.folders):
            refuse(("job",), "must name a finished job, or else folders must name SAEs", self.job)
        if self.folders and self.stream is None:
            refuse(("stream",), "is required with folders: it names the model and the text", None)
        if self.folders and self.saes:
            refuse(("saes",), "are those of a job; folders have names of their own", self.saes)
        if self.stream is not None and self.stream.synthetic is not None:
            refuse(("stream", "synthetic"), "has no text that latents could fire on", None)
        for field, names in (("saes", self.saes), ("folders", tuple(folder.name for folder in self.folders))):
            if len(set(names)) < len(names):
                refuse((field,), "must name each SAE once", names)
        if self.stream is not None:
            self.check_length(self.stream)
        return self

    @property
    def total_steps(self) -> int:
        """Batches of text."""
        assert self.stream is not None, "the stream of a job's SAEs is filled in when the job is submitted"
        return self.n_batches(self.stream)

    @property
    def total_tokens(self) -> int:
        """Tokens in whole rows of the model."""
        assert self.stream is not None, "the stream of a job's SAEs is filled in when the job is submitted"
        return self.whole_tokens(self.stream)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the SAEs; none if all of a job are meant."""
        return self.saes or tuple(folder.name for folder in self.folders)
