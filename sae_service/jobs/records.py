"""What the service knows of a job, as its users see it."""

from typing import Any, Literal

from pydantic import Field, computed_field

from sae_service.schema import Frozen

Status = Literal["queued", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled"]
ACTIVE: tuple[Status, ...] = ("running", "pausing", "cancelling")
"""An attempt owns the job."""
TERMINAL: tuple[Status, ...] = ("succeeded", "failed", "cancelled")
"""Never left again."""


class Failure(Frozen):
    """Why a job failed: a stable code, a sentence, and the field of the spec that is to blame."""

    code: str
    message: str
    param: str | None = None


class Pace(Frozen):
    """How far a job is, and how fast."""

    step: int
    total_steps: int
    tokens: int
    total_tokens: int
    tokens_per_s: float
    updated_at: int


class Progress(Pace):
    """How far a job is. `metrics` holds the latest row of each SAE, by name, and `held_out` its latest held-out figures, with
    their step, if it is measured during training.
    """

    metrics: dict[str, dict[str, Any]]
    held_out: dict[str, dict[str, Any]] = Field(default={})


class Origin(Frozen):
    """The checkpoint of another job that a job goes on from."""

    job_id: str
    checkpoint_id: str
    step: int
    tokens: int


class SAESummary(Frozen):
    """What a list shows of an SAE; of one that another job has trained, or that is in a folder, not all of it."""

    name: str
    hook_name: str | tuple[str, ...] | None = None
    kind: str | None = None
    d_sae: int | None = None


class Summary(Frozen):
    """What a list shows of a spec."""

    kind: str = Field(default="train", description="What it does: train, latents, statistics, steering or attribution.")
    looks_at_latents: bool = Field(default=False, description="Whether it says what the latents of its SAEs do.")
    model: str | None = Field(default=None, description="Null for synthetic activations.")
    dataset: str | None = None
    tokens: int | None = None
    gpus: int = 1
    saes: tuple[SAESummary, ...] = ()


class JobState(Frozen):
    """A job's state. Times are whole Unix seconds."""

    id: str
    object: Literal["job"] = "job"
    status: Status
    status_reason: str | None = Field(
        description="Why a queued job waits: waiting_for_worker (none takes such jobs at the moment), waiting_for_capacity, "
        "retry_after_crash or preempted; and of one that runs, worker_stopping while it is saved to be given back."
    )
    created_at: int
    started_at: int | None
    finished_at: int | None
    estimated_finish: int | None = None
    attempt: int = Field(description="Which attempt this is; it grows when a job goes on after a crash or a preemption.")
    worker: str | None
    origin: Origin | None = None
    latest_checkpoint: str | None = None
    error: Failure | None
    metadata: dict[str, str]
    project: str = "default"
    submitter: str | None = Field(default=None, description="The name of the key that asked for it.")

    @property
    def is_terminal(self) -> bool:
        """Whether nothing more will happen."""
        return self.status in TERMINAL


class Job(JobState):
    """A job as it was asked for, and its state."""

    progress: Progress | None
    spec: dict[str, Any] = Field(description="As it is stored: another release may have written it.")

    @property
    def is_training(self) -> bool:
        """Whether it trains SAEs, or else looks at trained ones."""
        return self.spec.get("kind", "train") == "train"


class JobSummary(JobState):
    """A job as a list shows it: its spec, and its latest metrics, are a request away."""

    progress: Pace | None
    summary: Summary


class Event(Frozen):
    """Something that happened to a job. `id` counts from 1 without a gap."""

    id: int
    object: Literal["job.event"] = "job.event"
    created_at: int
    type: Literal["status", "checkpoint", "message"]
    level: Literal["info", "warning", "error"]
    message: str
    data: dict[str, Any]


class MetricsRow(Frozen):
    """The training metrics of one SAE at one step, means over the steps since the row before; `held_out` in them are figures
    of held-out text, where it was time for those.
    """

    sae: str
    step: int
    data: dict[str, Any]

    @computed_field
    @property
    def id(self) -> str:
        """Where the row is among the job's: its step and its SAE."""
        return f"{self.step}:{self.sae}"


class FileEntry(Frozen):
    """One file of a checkpoint."""

    path: str
    size: int
    sha256: str


class Checkpoint(Frozen):
    """A saved state, and each SAE below `saes/<name>/`. `metrics` are held-out ones by SAE: a final one has them, and one
    that was written as the SAEs were measured during training.
    """

    id: str
    object: Literal["job.checkpoint"] = "job.checkpoint"
    job_id: str
    created_at: int
    step: int
    tokens: int
    is_final: bool
    names: tuple[Literal["latest", "best"], ...] = Field(
        default=(), description="What it can be asked for by, beside its id. best: the lowest score."
    )
    score: float | None = Field(
        default=None, description="Mean held-out FVU of the job's SAEs; none if they were not measured, or before the sparsity "
        "penalty has come to its full strength.",
    )  # fmt: skip
    metrics: dict[str, dict[str, Any]]
    files: tuple[FileEntry, ...]
    key: str = Field(exclude=True)


class Worker(Frozen):
    """A worker that is there: the queue and the number of GPUs of the jobs that it takes, and the one in hand."""

    name: str
    object: Literal["worker"] = "worker"
    queue: str
    gpus: int
    started_at: int
    seen_at: int
    job_id: str | None


class Explanation(Frozen):
    """What somebody says that a latent is about."""

    latent: int = Field(ge=0, lt=1 << 24)
    text: str = Field(min_length=1, max_length=4000)
    author: str = Field(default="", max_length=200, description="Who or what says it: a person, or the model of an explainer.")
    score: float | None = Field(default=None, description="How well it predicts activations, if that was measured.")
    created_at: int = Field(default=0, ge=0, lt=1 << 53, description="Set by the service.")
