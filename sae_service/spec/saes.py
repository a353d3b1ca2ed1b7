"""One SAE of a job as its user writes it."""

from typing import Any

from pydantic import Field, model_validator

from sae_service.architectures import ARCHITECTURES, AnyArchitectureConfig
from sae_service.schema import OWN_FORMAT, FormatName, Frozen, Name, Normalization, OptimizerConfig
from sae_service.spec.stream import HOOK_NAME_PATTERN


class InitialSpec(Frozen):
    """Weights that were trained before, to go on from."""

    path: str = Field(pattern=r"^[/.~]", description="The folder of an SAE (it starts with '/', '.' or '~').")
    format: FormatName = OWN_FORMAT
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
