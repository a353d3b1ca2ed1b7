"""Finds the file formats: every module in this folder is one, and its name is the format's."""

import importlib
import pkgutil

from sae_service.format import Format


def _discover() -> dict[str, Format]:
    found: dict[str, Format] = {}
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{__name__}.{info.name}")
        found[info.name] = Format(module.to_files, module.from_files)
    return found


FORMATS: dict[str, Format] = _discover()
