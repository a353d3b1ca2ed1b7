"""Finds the architectures: every module in this folder is one, and its name is its `kind`."""

import importlib
import pkgutil
from functools import reduce
from operator import or_
from typing import Annotated, Any

from pydantic import Field

from sae_service.sae.architecture import Architecture


def _discover() -> dict[str, Architecture]:
    found: dict[str, Architecture] = {}
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        architecture: Architecture = importlib.import_module(f"{__name__}.{module.name}").ARCHITECTURE
        kind = architecture.config.model_fields["kind"].default
        if kind != module.name:
            raise ImportError(f"architectures/{module.name}.py calls its kind {kind!r}; the two must be the same")
        found[module.name] = architecture
    return found


ARCHITECTURES: dict[str, Architecture] = _discover()

AnyArchitectureConfig: Any = Annotated[
    reduce(or_, (architecture.config for architecture in ARCHITECTURES.values())), Field(discriminator="kind")
]
