"""A training job as its user writes it: one activation stream and the SAEs that train on it.

Everything that can be checked without a model or text is checked here, with the path of the field to blame.
A parsed spec has no gaps: what the user left out is filled in, so the stored spec says all that was done.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sae_service.architectures import ARCHITECTURES, AnyArchitectureConfig
from sae_service.format_names import FormatName
from sae_service.schema import Dtype, Frozen, Name, Normalization, OptimizerConfig, WeightProcessing, refuse, with_nul

HOOK_NAME_PATTERN = r"^(blocks\.\d+\.)?([A-Za-z0-9_]+\.)*hook_[a-z0-9_]+$"
SYNTHETIC_HOOK = "hook_synthetic"
MAX_BUFFER_ROWS = 1 << 20
MAX_DEAD_AFTER_TOKENS = 10_000_000


def is_path(name: str) -> bool:
    """Whether a model's or dataset's name means a file or folder, not something on a hub."""
    return name.startswith(("/", ".", "~"))


class ModelSpec(Frozen):
    """Which language model the activations come from."""

    name: str = Field(
        min_length=1,
        description="A folder in Hugging Face format (it starts with '/', '.' or '~') or a hub name such as gpt2.",
    )
    revision: str | None = Field(default=None, description="Commit, tag or branch of a hub model.")
    dtype: Dtype = "float32"
    weight_processing: WeightProcessing = Field(
        default="none",
        description="none: the published weights. compatibility: TransformerLens folds layer norms and centres weights, "
        "which changes the activations.",
    )


class DatasetSpec(Frozen):
    """Which text is read, and which part of it is held out from training."""

    path: str = Field(
        min_length=1,
        description="A file (.jsonl, .txt, .parquet; .xz and .gz too), a folder of such files (it starts with '/', '.' or '~'), "
        "or a hub name.",
    )
    name: str | None = Field(default=None, description="Configuration of a hub dataset.")
    revision: str | None = Field(default=None, description="Commit, tag or branch of a hub dataset.")
    split: str = "train"
    column: str = Field(default="text", description="Column that holds a document's text.")
    held_out_split: str | None = Field(
        default=None, description="Split for evaluation. Default: a share of the documents of `split`, chosen by their hash."
    )
    held_out_share: float = Field(
        default=0.02, gt=0, lt=0.5, description="Share of the documents that is held out when no held_out_split is named."
    )


class SyntheticSpec(Frozen):
    """Activations with known features, in place of a model's: sparse strengths times fixed directions."""

    n_features: int = Field(gt=0, le=1 << 16)
    d_in: int = Field(gt=0, le=1 << 14)
    firing_probability: float = Field(default=0.05, gt=0, lt=1, description="Probability that the first feature fires.")
    firing_decay: float = Field(default=1.0, gt=0, le=1, description="Ratio of each feature's probability to the one before.")
    strength: tuple[float, float] = Field(default=(0.0, 1.0), description="Strengths are uniform between these two.")
    correlation: float = Field(
        default=0.0, ge=0, lt=1, description="Share of what decides firing that all features have in common."
    )
    branching: int = Field(
        default=0, ge=0, description="Children of each feature, which fire only where it does; 0: no hierarchy."
    )
    noise: float = Field(default=0.0, ge=0, description="Standard deviation of the normal noise in each dimension.")
    directions: Literal["random", "toy_model"] = Field(
        default="random", description="Random unit directions, or those that a toy model of superposition learns."
    )

    @model_validator(mode="after")
    def _check_strength(self) -> "SyntheticSpec":
        if not 0 <= self.strength[0] < self.strength[1]:
            refuse(("strength",), "must be two numbers, the first at least 0 and less than the second", self.strength)
        return self


Labels = Annotated[
    dict[
        Annotated[str, Field(max_length=64, pattern=r'^[^"\x00]*$')],
        Annotated[str, Field(max_length=512, pattern=r"^[^\x00]*$")],
    ],
    Field(max_length=16),
]


class StreamSpec(Frozen):
    """The activations that every SAE of the job trains on, in the order in which they are served: those of a model on
    the text of a dataset, or synthetic ones.
    """

    model: ModelSpec | None = None
    dataset: DatasetSpec | None = None
    synthetic: SyntheticSpec | None = None
    context_size: int = Field(default=128, ge=2, description="Tokens in each row that the model reads.")
    exclude: tuple[Literal["bos", "eos", "pad"] | Annotated[int, Field(ge=0)], ...] = Field(
        default=("bos", "eos", "pad"), description="Positions with these tokens (names or ids) are not trained on."
    )
    tokens: int = Field(gt=0, lt=1 << 53, description="Rows of activations to train on, one for each token.")
    batch: int = Field(default=4096, gt=0, description="Rows in a training step.")
    buffer_rows: int = Field(
        default=0, ge=0, description="Rows that are harvested and shuffled together; 0: about a million, less for a short job."
    )
    prompts: int = Field(default=16, gt=0, le=1 << 16, description="Rows of context_size tokens in one forward pass of the model.")
    seed: int = Field(default=0, ge=0, lt=1 << 32)

    @model_validator(mode="after")
    def _check_source(self) -> "StreamSpec":
        if self.synthetic is None:
            for name in ("model", "dataset"):
                if getattr(self, name) is None:
                    refuse((name,), "is required (or synthetic in place of model and dataset)", None)
        elif self.model is not None or self.dataset is not None:
            refuse(("synthetic",), "takes the place of model and dataset; give one or the other", None)
        return self

    @property
    def text_source(self) -> tuple[ModelSpec, DatasetSpec]:
        """The model and the dataset of a stream that has them."""
        assert self.model is not None
        assert self.dataset is not None
        return self.model, self.dataset

    @model_validator(mode="after")
    def _check_sizes(self) -> "StreamSpec":
        if self.tokens < self.batch:
            refuse(("tokens",), f"must be at least batch ({self.batch}): a job has at least one step", self.tokens)
        if 0 < self.buffer_rows < self.batch:
            refuse(("buffer_rows",), f"must be at least batch ({self.batch})", self.buffer_rows)
        return self

    @property
    def n_steps(self) -> int:
        """Training steps of the whole job."""
        return self.tokens // self.batch

    @property
    def steps_per_fill(self) -> int:
        """Batches that one fill of the buffer serves. By default a job has at least eight fills, so that the model
        and the SAEs work at the same time from early on."""
        rows = self.buffer_rows or min(MAX_BUFFER_ROWS, max(self.tokens // 8, 16 * self.batch))
        return max(1, min(rows // self.batch, self.n_steps))


class InitialSpec(Frozen):
    """Weights that were trained before, to go on from."""

    path: str = Field(pattern=r"^[/.~]", description="The folder of an SAE (it starts with '/', '.' or '~').")
    format: FormatName = FormatName.saelens
    sha256: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="What `sha256sum FILES | sha256sum` must say of the format's files, "
        "sorted by name. Provenance names it in any case.",
    )  # fmt: skip


class SAESpec(Frozen):
    """One SAE: where it reads, what it is and how it is trained."""

    name: Name = Field(default="", validate_default=False, description="Unique in the job. Default: kind and width.")
    hook_name: str = Field(pattern=HOOK_NAME_PATTERN, description="TransformerLens name, such as blocks.8.hook_resid_post.")
    architecture: AnyArchitectureConfig  # pyright: ignore[reportInvalidTypeForm]  discovered
    optimizer: OptimizerConfig = Field(description="Fields left out take the architecture's own defaults.")
    normalization: Normalization = Field(description="Default: the architecture's own.")
    dead_after_tokens: int = Field(
        default=0, ge=0, lt=1 << 30, description="A latent that has not fired for so many tokens is dead; 0: 10 million, "
        "or a tenth of a shorter job.",
    )  # fmt: skip
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    initial: InitialSpec | None = Field(default=None, description="Default: weights are drawn by the seed.")

    @model_validator(mode="before")
    @classmethod
    def _fill_in_defaults(cls, data: Any) -> Any:
        """Completes the optimiser, the normalisation and the name from the architecture's defaults."""
        config = data.get("architecture") if isinstance(data, dict) else None
        kind = config.get("kind") if isinstance(config, dict) else getattr(config, "kind", None)
        if not isinstance(kind, str) or kind not in ARCHITECTURES:
            return {"optimizer": {"lr": 1.0}, "normalization": "none", **data} if isinstance(data, dict) else data
        default = ARCHITECTURES[kind]
        d_sae = config.get("d_sae") if isinstance(config, dict) else getattr(config, "d_sae", None)
        filled = {"name": f"{kind}_{d_sae}", "normalization": default.normalization, **data}
        given = data.get("optimizer", {})
        if isinstance(given, dict):
            filled["optimizer"] = {**default.optimizer.model_dump(), **given}
        return filled


class CheckpointSpec(Frozen):
    """When the state is saved, so that a job survives its worker."""

    every_tokens: int = Field(default=0, ge=0, description="Tokens between two checkpoints; 0: a tenth of the job.")
    keep: int = Field(default=2, ge=1, description="Checkpoints that are kept beside the last one of the job.")


class EvaluationSpec(Frozen):
    """How much held-out text the finished SAEs are measured on."""

    tokens: int = Field(default=65_536, gt=0, description="Held-out tokens; all that there are, if fewer.")


class JobSpec(Frozen):
    """A whole training job."""

    schema_version: Literal[1] = 1
    stream: StreamSpec
    saes: tuple[SAESpec, ...] = Field(min_length=1, max_length=64)
    checkpoints: CheckpointSpec = CheckpointSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    log_every: int = Field(default=50, gt=0, description="Steps between two rows of metrics.")
    priority: int = Field(default=0, ge=-1_000_000, le=1_000_000, description="Higher runs earlier.")
    queue: Name = "default"
    gpus: int = Field(
        default=1, ge=1, le=64, description="GPUs of the training process; its SAEs are spread over them. 1 also runs on a CPU."
    )
    metadata: Labels = Field(default={}, description="The user's own labels; jobs can be listed by them.")

    @model_validator(mode="after")
    def _check_characters(self) -> "JobSpec":
        for location in with_nul(self.model_dump()):
            # PostgreSQL has no such character, and could not look into the spec of any job any more.
            refuse(location, "must not contain the character NUL", None)
        return self

    @model_validator(mode="after")
    def _check_across_fields(self) -> "JobSpec":
        seen: dict[str, int] = {}
        for index, sae in enumerate(self.saes):
            if sae.name in seen:
                other = f"saes[{seen[sae.name]}]"
                refuse(("saes", index, "name"), f"must be unique; {other} is called {sae.name!r} too", sae.name)
            seen[sae.name] = index
        for index, sae in enumerate(self.saes):
            if self.stream.synthetic is not None and sae.hook_name != SYNTHETIC_HOOK:
                refuse(("saes", index, "hook_name"), f"must be {SYNTHETIC_HOOK} for synthetic activations", sae.hook_name)
        if self.gpus > len(self.saes):
            refuse(("gpus",), f"must be at most the number of SAEs ({len(self.saes)}): each trains on one GPU", self.gpus)
        if self.evaluation.tokens < self.stream.context_size:
            minimum = self.stream.context_size
            refuse(("evaluation", "tokens"), f"must be at least context_size ({minimum})", self.evaluation.tokens)
        return self

    @property
    def hook_names(self) -> tuple[str, ...]:
        """The hook points that are read, each once, in the order of first use."""
        return tuple(dict.fromkeys(sae.hook_name for sae in self.saes))

    @property
    def checkpoint_every_steps(self) -> int:
        """Steps between two checkpoints."""
        tokens = self.checkpoints.every_tokens or self.stream.tokens // 10
        return max(1, tokens // self.stream.batch)

    def dead_after_tokens(self, sae: SAESpec) -> int:
        """Tokens without firing after which a latent of `sae` counts as dead."""
        return sae.dead_after_tokens or max(1, min(MAX_DEAD_AFTER_TOKENS, self.stream.tokens // 10))
