"""What a job may ask for: the architectures, with their fields and defaults."""

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel

from sae_service.architectures import ARCHITECTURES

router = APIRouter(tags=["catalog"])


class ArchitectureEntry(BaseModel):
    """One kind of SAE."""

    kind: str
    description: str
    config_schema: dict[str, Any]
    optimizer: dict[str, Any]
    normalization: str


class Catalog(BaseModel):
    """All kinds."""

    object: Literal["list"] = "list"
    data: list[ArchitectureEntry]


@router.get("/architectures")
def list_architectures() -> Catalog:
    """The architectures, each with the JSON schema of its fields and the defaults of its optimiser."""
    return Catalog(
        data=[
            ArchitectureEntry(
                kind=kind,
                description=(architecture.config.__doc__ or "").strip(),
                config_schema=architecture.config.model_json_schema(),
                optimizer=architecture.optimizer.model_dump(),
                normalization=architecture.normalization,
            )
            for kind, architecture in sorted(ARCHITECTURES.items())
        ]
    )
