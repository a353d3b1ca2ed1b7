"""One SAE of a job as its user writes it."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from sae_service.architectures import ARCHITECTURES, AnyArchitectureConfig
from sae_service.sae.sites import Sites
from sae_service.schema import OWN_FORMAT, FormatName, Frozen, Name, Normalization, OptimizerConfig, refuse
from sae_service.spec.stream import HOOK_NAME_PATTERN


class InitialSpec(Frozen):
    """Weights that were trained before, to go on from."""

    path: str = Field(pattern=r"^[/.~]", description="The folder of an SAE (it starts with '/', '.' or '~').")
    format: FormatName = OWN_FORMAT
    sha256: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="What `sha256sum FILES | sha256sum` must say of the format's files, "
        "sorted by name. Provenance names it in any case.",
    )  # fmt: skip


HookName = Annotated[str, Field(pattern=HOOK_NAME_PATTERN)]
HookNames = HookName | Annotated[tuple[HookName, ...], Field(min_length=2, max_length=64)]


class SAESpec(Frozen):
    """One SAE: where it reads, what it is and how it is trained."""

    name: Name = Field(default="", validate_default=False, description="Unique in the job. Default: kind and width.")
    hook_name: HookNames = Field(
        description="TransformerLens name of what is read, such as blocks.8.hook_resid_post; a list of several makes a crosscoder, "
        "which reads and writes them side by side."
    )
    hook_name_out: HookNames | None = Field(
        default=None, description="What is written, if that is not what is read: this makes a transcoder."
    )
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

    def sites(self, widths: Mapping[str, int]) -> Sites:
        """Where it reads and writes, with the widths of the rows there."""
        read, write = (tuple((name, widths[name]) for name in names) for names in (self.reads, self.writes))
        return Sites(read, write)


def _each(names: Any) -> tuple[str, ...]:
    """One or several hook points as several."""
    return (names,) if isinstance(names, str) else tuple(names)
