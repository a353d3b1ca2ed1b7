"""A job that looks at what SAEs do on given prompts, as its user writes it: what steering and attribution have in common."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from sae_service.schema import Name, must, refuse
from sae_service.spec.latents import FolderSpec, JobId
from sae_service.spec.queued import QueuedSpec
from sae_service.spec.stream import Excluded, ModelSpec

LONGEST_PROMPT = 1 << 14


def _no_truth(value: Any) -> Any:
    """Python takes true for 1."""
    return None if isinstance(value, bool) else value


TokenId = Annotated[int, BeforeValidator(_no_truth), Field(ge=0, lt=1 << 31)]
Token = Annotated[
    Annotated[str, Field(min_length=1, max_length=256)] | TokenId,
    must("be a token: its text, with the space before it if it has one, or its id"),
]
Prompt = Annotated[
    Annotated[str, Field(min_length=1, max_length=1 << 16)]
    | Annotated[tuple[TokenId, ...], Field(min_length=1, max_length=LONGEST_PROMPT)],
    must("be a text or a list of token ids, and not empty"),
]
Contrast = Annotated[tuple[Token, Token], must("be two tokens; the difference of their logits is looked at")]


class PromptedSpec(QueuedSpec):
    """Which SAEs of which model, and the prompts."""

    job: JobId | None = Field(default=None, description="The finished job whose SAEs are meant.")
    saes: tuple[Name, ...] = Field(default=(), max_length=64, description="Which of its SAEs.")
    folders: tuple[FolderSpec, ...] = Field(default=(), max_length=64, description="SAEs in folders, in place of a job's.")
    model: ModelSpec | None = Field(
        default=None, description="The model. Needed without a job; the SAEs of a job are looked at in the model of the job."
    )
    exclude: tuple[Excluded, ...] | None = Field(
        default=None, description="Positions with these tokens (names or ids) are not edited and are in no sum. Default: those "
        "that the job left out; without a job bos, eos and pad.",
    )  # fmt: skip
    prompts: tuple[Prompt, ...] = Field(
        min_length=1, max_length=256, description="Texts, which begin with BOS as the text of training does, or lists of token "
        "ids, which are taken as they are.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _check_subjects(self) -> "PromptedSpec":
        for field, names in (("saes", self.saes), ("folders", tuple(folder.name for folder in self.folders))):
            if len(set(names)) < len(names):
                refuse((field,), "must name each SAE once", names)
        if self.job is not None and self.folders:
            refuse(("folders",), "are in place of a job's SAEs; leave out one of the two", None)
        if self.job is None and self.saes:
            refuse(("saes",), "are those of a job; folders have names of their own", self.saes)
        if self.job is None and self.model is None:
            refuse(("model",), "is required without a job: it names the model", None)
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the SAEs."""
        return self.saes or tuple(folder.name for folder in self.folders)

    @property
    def total_steps(self) -> int:
        """Prompts."""
        return len(self.prompts)

    @property
    def total_tokens(self) -> int:
        """Tokens of the prompts, as far as they are known before a tokenizer is: one at least of each."""
        return sum(1 if isinstance(prompt, str) else len(prompt) for prompt in self.prompts)
