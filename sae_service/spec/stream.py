"""The stream of activations as its user writes it: which model reads which text, or synthetic rows."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from sae_service.plain_words import OURS
from sae_service.schema import CacheDtype, Dtype, Frozen, Precision, WeightProcessing, must, refuse

HOOK_NAME_PATTERN = r"^(blocks\.\d+\.)?([A-Za-z0-9_]+\.)*hook_[a-z0-9_]+$"
SYNTHETIC_HOOK, SYNTHETIC_HOOK_OUT = "hook_synthetic", "hook_synthetic_out"
"""The features' rows, and what a fixed linear map makes of them, for transcoders and crosscoders to learn."""
MAX_BUFFER_ROWS = 1 << 20
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
HUB_NAME = re.compile(rf"(?:{_PART}/)?{_PART}")
TOKENS_IN_PASS = 1 << 12
"""So many tokens go through the model at once, unless the spec says otherwise. It depends on no device: bytes depend on it."""
SAMPLE_ROWS = 1 << 15
"""So many rows of a fill stand for all of it."""
MAX_STEPS = 1 << 31
"""Steps are 32 bits wide in the database and in a compiled step."""
STRENGTH_RULE = "be two numbers, the first at least 0 and less than the second"
Excluded = Annotated[
    Literal["bos", "eos", "pad"] | Annotated[int, Field(ge=0, lt=1 << 31)],
    must("be 'bos', 'eos', 'pad' or the id of a token, at least 0"),
]

CacheMode = Annotated[
    Literal["off", "use", "fill"],
    BeforeValidator(lambda value: "off" if value is False else value),
    WithJsonSchema({"enum": ["off", "use", "fill", False]}),
]
"""YAML takes off for false."""


def is_path(name: str) -> bool:
    """Whether a model's or dataset's name means a file or folder, not something on a hub."""
    return name.startswith(("/", ".", "~"))


def _is_hub_name(name: str) -> bool:
    """Whether a hub takes `name` for a repository: at most one slash, and the characters and lengths that it allows."""
    return bool(HUB_NAME.fullmatch(name)) and "--" not in name and ".." not in name and not name.endswith(".git")


def _path_or_hub_name(name: str) -> str:
    if not is_path(name) and not _is_hub_name(name):
        raise PydanticCustomError(
            OURS,
            "must be a path, which starts with '/', '.' or '~', or a name on a hub, such as gpt2 or owner/name; "
            "addresses (file://, http://, s3://, hf://) are not read",
        )
    return name


def _revision(revision: str) -> str:
    if ".." in revision or revision.startswith("/"):
        raise PydanticCustomError(OURS, "must be a commit, a tag or a branch: no '..', and no '/' at its start")
    return revision


PathOrHubName = Annotated[str, Field(min_length=1), AfterValidator(_path_or_hub_name)]
Revision = Annotated[str, AfterValidator(_revision)]


class ModelSpec(Frozen):
    """Which language model the activations come from."""

    name: PathOrHubName = Field(
        description="A folder in Hugging Face format (it starts with '/', '.' or '~') or a hub name such as gpt2.",
    )
    revision: Revision | None = Field(default=None, description="Commit, tag or branch of a hub model.")
    dtype: Dtype = Field(default="float32", description="What the weights are held in, and the rows.")
    precision: Precision | None = Field(
        default=None, description="That of the products of matrices in float32: what their factors are rounded to. null: float32 "
        "on a CPU, tensorfloat32 on a GPU. A CPU has no tensorfloat32 and takes float32 for it.",
    )  # fmt: skip
    weight_processing: WeightProcessing = Field(
        default="none",
        description="none: the published weights. compatibility: TransformerLens folds layer norms and centres weights, "
        "which changes the activations.",
    )

    @model_validator(mode="after")
    def _check_precision(self) -> "ModelSpec":
        if self.dtype != "float32" and self.precision not in (None, self.dtype):
            refuse(("precision",), f"is about weights in float32, and dtype is {self.dtype}; leave it out", self.precision)
        return self


class DatasetSpec(Frozen):
    """Which text is read, and which part of it is held out from training."""

    path: PathOrHubName = Field(
        description="A file (.jsonl, .ndjson, .json, .csv, .txt, .parquet, .arrow; .gz, .xz, .bz2 and .zst too), a folder of such "
        "files or one by save_to_disk (it starts with '/', '.' or '~'), or a hub name.",
    )
    name: str | None = Field(default=None, description="Configuration of a hub dataset.")
    revision: Revision | None = Field(default=None, description="Commit, tag or branch of a hub dataset.")
    split: str = "train"
    column: str = Field(
        default="text",
        description="Column that holds a document: its text, its token ids (a list of integers), or with chat its messages.",
    )
    rows: Literal["packed", "kept"] = Field(
        default="packed",
        description="packed: documents follow one another in rows of context_size; BOS starts each row and stands between "
        "documents (one that begins with it gets no second). kept: each list of token ids is a row as it is, cut to context_size; "
        "nothing is added, and a shorter one is an error.",
    )
    chat: bool = Field(
        default=False,
        description="The column holds conversations, lists of messages with role and content, which go through the chat template "
        "of the model's tokenizer.",
    )
    train_on: Literal["all", "assistant"] = Field(
        default="all",
        description="Which tokens of a conversation are trained on and measured: all, or those of the assistant's turns (what the "
        "template marks with {% generation %}, or else from the generation prompt to the end of the turn).",
    )
    held_out_split: str | None = Field(
        default=None, description="Split for evaluation. Default: a share of the documents of `split`, chosen by their hash."
    )
    held_out_share: float = Field(
        default=0.02, gt=0, lt=0.5, description="Share of the documents that is held out when no held_out_split is named."
    )

    @model_validator(mode="after")
    def _check_chat(self) -> "DatasetSpec":
        if self.chat and self.rows == "kept":
            refuse(("rows",), "must be packed for conversations (chat)", self.rows)
        if self.train_on != "all" and not self.chat:
            refuse(("train_on",), "is about conversations; it needs chat: true", self.train_on)
        return self


def _prompts(done: dict[str, Any]) -> int:
    """Rows of the model that come near to TOKENS_IN_PASS, at least one."""
    return max(1, TOKENS_IN_PASS // done["context_size"])


class SyntheticSpec(Frozen):
    """Activations with known features, in place of a model's: sparse strengths times fixed directions."""

    n_features: int = Field(gt=0, le=1 << 16)
    d_in: int = Field(gt=0, le=1 << 14)
    firing_probability: float = Field(default=0.05, gt=0, lt=1, description="Probability that the first feature fires.")
    firing_decay: float = Field(default=1.0, gt=0, le=1, description="Ratio of each feature's probability to the one before.")
    strength: Annotated[tuple[float, float], must(STRENGTH_RULE)] = Field(
        default=(0.0, 1.0), description="Strengths are uniform between these two."
    )
    correlation: float = Field(
        default=0.0, ge=0, lt=1, description="Share of what decides firing that all features have in common."
    )
    branching: int = Field(
        default=0, ge=0, le=1 << 16, description="Children of each feature, which fire only where it does; 0: no hierarchy."
    )
    noise: float = Field(default=0.0, ge=0, description="Standard deviation of the normal noise in each dimension.")
    directions: Literal["random", "toy_model"] = Field(
        default="random", description="Random unit directions, or those that a toy model of superposition learns."
    )

    @model_validator(mode="after")
    def _check_strength(self) -> "SyntheticSpec":
        if not 0 <= self.strength[0] < self.strength[1]:
            refuse(("strength",), f"must {STRENGTH_RULE}", self.strength)
        return self


class StreamSpec(Frozen):
    """The activations that every SAE of the job trains on, in the order in which they are served: those of a model on
    the text of a dataset, or synthetic ones.
    """

    model: ModelSpec | None = None
    dataset: DatasetSpec | None = None
    synthetic: SyntheticSpec | None = None
    context_size: int = Field(default=128, ge=2, le=1 << 20, description="Tokens in each row that the model reads.")
    exclude: tuple[Excluded, ...] = Field(
        default=("bos", "eos", "pad"), description="Positions with these tokens (names or ids) are not trained on."
    )
    max_activation_norm_multiple: float | None = Field(
        default=None, gt=1, le=1e6, description="Rows longer than so many times the median, at any hook point, are left out of "
        "training and of the figures of reconstruction, such as those of attention sinks; null leaves none out.",
    )  # fmt: skip
    tokens: int = Field(gt=0, lt=1 << 53, description="Rows of activations to train on, one for each token.")
    batch: int = Field(default=4096, gt=0, le=1 << 24, description="Rows in a training step.")
    buffer_rows: int = Field(
        default=0, ge=0, lt=1 << 31,
        description="Rows that are harvested and shuffled together; 0: about a million, less for a short job.",
    )
    buffer_bytes: int = Field(
        default=2 << 30, gt=0, le=1 << 44,
        description="Bytes that these rows may take, over all hook points; two such fills live at once.",
    )
    prompts: int = Field(
        default_factory=_prompts, gt=0, le=1 << 16,
        description=f"Rows of context_size tokens in one forward pass of the model. Default: those of {TOKENS_IN_PASS} tokens.",
    )
    cache: CacheMode = Field(
        default="off", description="The activation cache, which jobs share. use: rows that are there are read instead of computed. "
        "fill: that too, and rows that are computed are kept there.",
    )  # fmt: skip
    cache_dtype: CacheDtype | None = Field(
        default=None, description="The number type of cached rows; null: the model's own, which changes nothing. A coarser one "
        "(int8 has a scale for each row) takes less space, and all rows that are trained on are rounded to it.",
    )  # fmt: skip
    seed: int = Field(default=0, ge=0, lt=1 << 32)

    @model_validator(mode="after")
    def _check_source(self) -> "StreamSpec":
        if self.synthetic is None:
            for name in ("model", "dataset"):
                if getattr(self, name) is None:
                    refuse((name,), "is required (or synthetic in place of model and dataset)", None)
        elif self.cache != "off":
            refuse(("cache",), "is for the rows of a model; leave it out", self.cache)
        elif self.max_activation_norm_multiple is not None:
            refuse(("max_activation_norm_multiple",), "is for the rows of a model; leave it out", self.max_activation_norm_multiple)
        elif self.model is not None or self.dataset is not None:
            refuse(("synthetic",), "takes the place of model and dataset; give one or the other", None)
        return self

    @model_validator(mode="after")
    def _check_cache(self) -> "StreamSpec":
        if self.cache_dtype is not None and self.cache == "off":
            refuse(("cache_dtype",), "is for cached rows; leave it out, or give cache: use or fill", self.cache_dtype)
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
            refuse(("tokens",), f"must be at least batch ({self.batch}), one step", self.tokens)
        if self.n_steps >= MAX_STEPS:
            refuse(("tokens",), f"must be less than {MAX_STEPS} times batch: that is the most steps that a job has", self.tokens)
        if 0 < self.buffer_rows < self.batch:
            refuse(("buffer_rows",), f"must be at least batch ({self.batch})", self.buffer_rows)
        return self

    @property
    def rounded_to(self) -> CacheDtype | None:
        """The number type that rows are rounded to, if they are."""
        is_exact = self.cache_dtype is None or self.model is None or self.cache_dtype in (self.model.dtype, "float32")
        return None if is_exact else self.cache_dtype

    @property
    def n_steps(self) -> int:
        """Training steps of the whole job."""
        return self.tokens // self.batch

    @property
    def steps_per_fill(self) -> int:
        """Batches that one fill of the buffer serves, if its bytes suffice.

        By default a job has at least eight fills, so that the model and the SAEs work at the same time from early on.
        """
        rows = self.buffer_rows or min(MAX_BUFFER_ROWS, max(self.tokens // 8, 16 * self.batch))
        return max(1, min(rows // self.batch, self.n_steps))

    @property
    def steps_in_sample(self) -> int:
        """Batches that hold SAMPLE_ROWS: at least one."""
        return -(-SAMPLE_ROWS // self.batch)

    def steps_in_fill(self, row_bytes: int) -> int:
        """Batches that one fill serves, where a row of every hook point takes so many bytes: at least one."""
        return max(1, min(self.steps_per_fill, self.buffer_bytes // (row_bytes * self.batch)))
