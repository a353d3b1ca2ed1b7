"""One SAE of a job as its user writes it."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticUseDefault

from sae_service.architectures import ARCHITECTURES, AnyArchitectureConfig
from sae_service.sae.architecture import Architecture
from sae_service.sae.sites import Sites
from sae_service.schema import OWN_FORMAT, FormatName, Frozen, Name, Normalization, OptimizerConfig, Precision, must, refuse
from sae_service.spec.stream import HOOK_NAME_PATTERN

HookName = Annotated[str, Field(pattern=HOOK_NAME_PATTERN)]
HookNames = Annotated[
    HookName | Annotated[tuple[HookName, ...], Field(min_length=2, max_length=64)],
    must("be the name of a hook point, such as blocks.8.hook_resid_post, or a list of 2 to 64 of them"),
]


Shard = Literal["none", "latents", "batch"]
"""What of an SAE's training is split over the devices of a job."""


class InitialSpec(Frozen):
    """Weights that were trained before, to go on from."""

    path: Annotated[str, Field(pattern=r"^[/.~]"), must("be the path of a folder, which starts with '/', '.' or '~'")] = Field(
        description="The folder of an SAE (it starts with '/', '.' or '~')."
    )
    format: FormatName = OWN_FORMAT
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$"), must("be 64 hexadecimal digits in lower case")] | None = Field(
        default=None, description="What `sha256sum FILES | sha256sum` must say of the format's files, sorted by name. "
        "Provenance names it in any case.",
    )  # fmt: skip


def _architecture(done: dict[str, Any]) -> Architecture:
    """The architecture of the SAE whose fields so far are `done`."""
    return ARCHITECTURES[done["architecture"].kind]


def _named(done: dict[str, Any]) -> str:
    return f"{done['architecture'].kind}_{done['architecture'].d_sae}"


def _completed(given: dict[str, Any], done: dict[str, Any]) -> OptimizerConfig:
    """The architecture's own optimiser with the fields that are given, which alone count as set."""
    whole = OptimizerConfig.model_validate(_architecture(done).optimizer.model_dump() | given)
    return OptimizerConfig.model_construct(set(given), **dict(whole))


class SAESpec(Frozen):
    """One SAE: where it reads, what it is and how it is trained."""

    hook_name: HookNames = Field(
        description="TransformerLens name of what is read, such as blocks.8.hook_resid_post; a list of several makes a crosscoder, "
        "which reads and writes them side by side."
    )
    hook_name_out: HookNames | None = Field(
        default=None, description="What is written, if that is not what is read: this makes a transcoder."
    )
    architecture: AnyArchitectureConfig  # pyright: ignore[reportInvalidTypeForm]  discovered
    name: Name = Field(default_factory=_named, description="Unique in the job. Default: kind and width.")
    optimizer: OptimizerConfig = Field(
        default_factory=lambda done: _completed({}, done),
        description="Fields left out take the architecture's own defaults; a warm-up at most a fifth of the job.",
    )
    normalization: Normalization = Field(
        default_factory=lambda done: _architecture(done).normalization, description="Default: the architecture's own."
    )
    dead_after_tokens: int = Field(
        default=0, ge=0, lt=1 << 30, description="A latent that has not fired for so many tokens is dead; 0: 10 million, "
        "or a tenth of a shorter job.",
    )  # fmt: skip
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    precision: Precision | None = Field(
        default=None, description="That of the matrix products of its training: what their factors are rounded to. null: float32 "
        "on a CPU, tensorfloat32 on a GPU. Figures and files are made in float32 in any case.",
    )  # fmt: skip
    initial: InitialSpec | None = Field(default=None, description="Default: weights are drawn by the seed.")
    shard: Shard = Field(
        default="none", description="How the SAE is split over the job's gpus: by latents, if it is too wide for one of them; by "
        "the rows of each batch, if it is narrow and one is too slow; none: it lives on one of them.",
    )  # fmt: skip

    @field_validator("optimizer", mode="before")
    @classmethod
    def _complete(cls, given: Any, info: ValidationInfo) -> Any:
        if "architecture" not in info.data:
            # It is blamed. What the optimiser lacks without it cannot be said.
            raise PydanticUseDefault
        return _completed(given, info.data) if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _check_hook_names(self) -> "SAESpec":
        for field, names in (("hook_name", self.reads), ("hook_name_out", self.writes)):
            if len(set(names)) < len(names):
                refuse((field,), "must name each hook point once", names)
        if self.hook_name_out is not None and set(self.reads) & set(self.writes):
            refuse(("hook_name_out",), "must not name what hook_name names; leave it out to reconstruct what is read", self.writes)
        if getattr(self.architecture, "skip", False) and self.hook_name_out is None:
            refuse(("architecture", "skip"), "needs hook_name_out: a bypass of an autoencoder would be the identity", True)
        return self

    @property
    def reads(self) -> tuple[str, ...]:
        """The hook points that are read."""
        return _each(self.hook_name)

    @property
    def writes(self) -> tuple[str, ...]:
        """The hook points that are written."""
        return _each(self.hook_name if self.hook_name_out is None else self.hook_name_out)

    def fitted(self, n_steps: int) -> "SAESpec":
        """This SAE for a job of `n_steps`: warm-ups that its user left out are a fifth of the job, if they would be longer."""
        longest, given = n_steps // 5, self.optimizer
        own = {name for name in ("lr_warm_up", "sparsity_warm_up") if name not in given.model_fields_set}
        shorter = {name: longest for name in own if getattr(given, name) > longest}
        return self.model_copy(update={"optimizer": given.model_copy(update=shorter)})

    def sites(self, widths: Mapping[str, int]) -> Sites:
        """Where it reads and writes, with the widths of the rows there."""
        read, write = (tuple((name, widths[name]) for name in names) for names in (self.reads, self.writes))
        return Sites(read, write)


def _each(names: Any) -> tuple[str, ...]:
    """One or several hook points as several."""
    return (names,) if isinstance(names, str) else tuple(names)
