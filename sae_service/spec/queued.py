"""What every job says, of whatever kind it is: where it waits, and whose it is."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from sae_service.schema import Frozen, Name, must, refuse, refuse_long, with_nul

Count = Annotated[int, Field(lt=1 << 53)]
"""Such whole numbers are the same in JSON wherever it is read, and fit into every database."""


LabelName = Annotated[
    str,
    Field(max_length=64, pattern=r'^[^"\x00]*$', description="A label's name."),
    must("have a name of at most 64 characters, none of them a quotation mark or NUL"),
]
LabelText = Annotated[
    str,
    Field(max_length=512, pattern=r"^[^\x00]*$"),
    must("be text of at most 512 characters, none of them NUL; put a number in quotes"),
]
Labels = Annotated[dict[LabelName, LabelText], Field(max_length=16, json_schema_extra={"additionalProperties": False})]
MAX_TOKENS = 1 << 30
"""Tokens of one look at SAEs."""


class CheckpointSpec(Frozen):
    """When the state is saved, so that a job survives its worker."""

    every_tokens: Count = Field(
        default=0, ge=0, description="Tokens between two checkpoints; 0: by the clock, every two to ten minutes of training."
    )
    keep: int = Field(default=2, ge=1, le=1 << 20, description="Checkpoints that are kept beside the final and the best one.")


class QueuedSpec(Frozen):
    """The part of a job that its queue reads."""

    checkpoints: CheckpointSpec = CheckpointSpec()
    priority: int = Field(default=0, ge=-1_000_000, le=1_000_000, description="Higher runs earlier.")
    queue: Name = "default"
    metadata: Labels = Field(default={}, description="The user's own labels; jobs can be listed by them.")

    @model_validator(mode="before")
    @classmethod
    def _check_lengths(cls, data: Any) -> Any:
        refuse_long(data)
        return data

    @model_validator(mode="after")
    def _check_characters(self) -> "QueuedSpec":
        for location in with_nul(self.model_dump()):
            # PostgreSQL has no such character, and could not look into the spec of any job any more.
            refuse(location, "must not contain the character NUL", None)
        return self
