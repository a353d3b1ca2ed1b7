"""What a list shows of a stream in the activation cache."""

from typing import Literal

from pydantic import Field

from sae_service.schema import Frozen


class CachedStream(Frozen):
    """The cached rows of one stream: a model's on the text of a dataset. Times are whole Unix seconds."""

    id: str
    object: Literal["cached_stream"] = "cached_stream"
    model: str | None = Field(default=None, description="Null if it was not said before its job was killed.")
    dataset: str | None = None
    hook_names: tuple[str, ...] = ()
    n_bytes: int
    created_at: int
    used_at: int = Field(description="When a job last read or added rows.")
    project: str | None = Field(default=None, description="Whose jobs read it; null: all jobs.")
