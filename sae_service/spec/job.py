"""A training job as its user writes it: one activation stream and the SAEs that train on it.

Everything that can be checked without a model or text is checked here, with the path of the field to blame.
A parsed spec has no gaps: what the user left out is filled in, so the stored spec says all that was done.
"""

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from sae_service.schema import SPEC_VERSION, Frozen, refuse
from sae_service.spec.latents import LatentsPart
from sae_service.spec.queued import MAX_TOKENS, Count, QueuedSpec
from sae_service.spec.saes import SAESpec
from sae_service.spec.stream import MAX_STEPS, SYNTHETIC_HOOK, SYNTHETIC_HOOK_OUT, StreamSpec

MAX_DEAD_AFTER_TOKENS = 10_000_000
class EvaluationSpec(Frozen):
    """How the SAEs are measured on held-out text: all of them at the end, and during training if the user wants that."""

    tokens: int = Field(default=65_536, gt=0, le=MAX_TOKENS, description="Held-out tokens; all that there are, if fewer.")
    every_tokens: Count = Field(
        default=0, ge=0, description="Tokens of training between two evaluations, each of which comes with a checkpoint; 0: at "
        "the end only.",
    )  # fmt: skip


class JobSpec(QueuedSpec):
    """A whole training job."""

    schema_version: Literal[1, 2] = Field(default=SPEC_VERSION, description="1 is taken as well; a job has 2.")
    kind: Literal["train"] = "train"
    stream: StreamSpec
    saes: tuple[SAESpec, ...] = Field(min_length=1, max_length=64)
    evaluation: EvaluationSpec = EvaluationSpec()
    latents: LatentsPart | None = Field(
        default=None, description="Looks at what each latent of the SAEs does on held-out text, once they are trained."
    )
    log_every: int = Field(default=50, gt=0, lt=MAX_STEPS, description="Steps between two rows of metrics; evaluations add rows.")
    gpus: int = Field(
        default=1, ge=1, le=64, description="GPUs of the training process; its SAEs are spread over them, or split (shard). 1 also "
        "runs on a CPU.",
    )  # fmt: skip

    @field_validator("saes")
    @classmethod
    def _fit_to_length(cls, saes: tuple[SAESpec, ...], info: ValidationInfo) -> tuple[SAESpec, ...]:
        stream = info.data.get("stream")
        return tuple(sae.fitted(stream.n_steps) for sae in saes) if stream is not None else saes

    @field_validator("schema_version")
    @classmethod
    def _as_stored(cls, _: Any) -> int:
        return SPEC_VERSION

    @model_validator(mode="after")
    def _check_across_fields(self) -> "JobSpec":
        seen: dict[str, int] = {}
        for index, sae in enumerate(self.saes):
            if sae.name in seen:
                other = f"saes[{seen[sae.name]}]"
                refuse(("saes", index, "name"), f"must be unique; {other} is called {sae.name!r} too", sae.name)
            seen[sae.name] = index
        for index, sae in enumerate(self.saes):
            known = (SYNTHETIC_HOOK, SYNTHETIC_HOOK_OUT)
            for field, names in (("hook_name", sae.reads), ("hook_name_out", sae.writes)):
                if self.stream.synthetic is not None and not set(names) <= set(known):
                    refuse(("saes", index, field), f"must be {' or '.join(known)} for synthetic activations", names)
        if self.gpus > len(self.saes) and all(sae.shard == "none" for sae in self.saes):
            why = f"({len(self.saes)}): each trains on one GPU, unless its shard says otherwise"
            refuse(("gpus",), f"must be at most the number of SAEs {why}", self.gpus)
        if self.evaluation.tokens < self.stream.context_size:
            minimum = self.stream.context_size
            refuse(("evaluation", "tokens"), f"must be at least context_size ({minimum})", self.evaluation.tokens)
        return self

    @model_validator(mode="after")
    def _check_latents(self) -> "JobSpec":
        if self.latents is not None:
            if self.stream.synthetic is not None:
                refuse(("latents",), "needs text that latents can fire on, and synthetic activations have none", None)
            self.latents.check_length(self.stream, "latents")
        return self

    @model_validator(mode="after")
    def _check_shards(self) -> "JobSpec":
        for index, sae in enumerate(self.saes):
            if sae.shard == "none":
                continue
            if self.gpus == 1:
                refuse(("saes", index, "shard"), "needs several gpus: raise gpus, or choose none", sae.shard)
            if sae.shard == "latents" and sae.architecture.d_sae % self.gpus:
                field, value = ("saes", index, "architecture", "d_sae"), sae.architecture.d_sae
                refuse(field, f"must be a multiple of gpus ({self.gpus}), over which the latents are split (shard)", value)
            if sae.shard == "batch" and self.stream.batch % self.gpus:
                why = f"over which saes[{index}] splits it (shard)"
                refuse(("stream", "batch"), f"must be a multiple of gpus ({self.gpus}), {why}", self.stream.batch)
        return self

    @model_validator(mode="after")
    def _check_every_tokens(self) -> "JobSpec":
        for part in ("checkpoints", "evaluation"):
            every = getattr(self, part).every_tokens
            if 0 < every < self.stream.batch:
                refuse((part, "every_tokens"), f"must be at least batch ({self.stream.batch}), or 0", every)
        return self

    @property
    def total_steps(self) -> int:
        """Training steps, and batches of text in which latents are looked at."""
        return self.stream.n_steps + (self.latents.n_batches(self.stream) if self.latents is not None else 0)

    @property
    def total_tokens(self) -> int:
        """Rows of activations that are trained on, and tokens on which latents are looked at."""
        trained = self.stream.n_steps * self.stream.batch
        return trained + (self.latents.whole_tokens(self.stream) if self.latents is not None else 0)

    @property
    def hook_names(self) -> tuple[str, ...]:
        """The hook points that are read, each once, in the order of first use."""
        return tuple(dict.fromkeys(name for sae in self.saes for name in (*sae.reads, *sae.writes)))

    @property
    def checkpoint_every_steps(self) -> int | None:
        """Steps between two checkpoints, or None if the clock decides."""
        tokens = self.checkpoints.every_tokens
        return tokens // self.stream.batch if tokens else None

    def is_evaluated_after(self, n_steps: int) -> bool:
        """Whether the SAEs are measured in the middle of training, after so many steps; after the last they always are."""
        tokens = self.evaluation.every_tokens
        return tokens > 0 and 0 < n_steps < self.stream.n_steps and n_steps % (tokens // self.stream.batch) == 0

    def dead_after_tokens(self, sae: SAESpec) -> int:
        """Tokens without firing after which a latent of `sae` counts as dead."""
        return sae.dead_after_tokens or max(1, min(MAX_DEAD_AFTER_TOKENS, self.stream.tokens // 10))
