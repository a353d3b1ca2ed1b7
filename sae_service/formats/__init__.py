"""Finds the file formats: every module in this folder is one, and its name is the format's."""

import importlib

from sae_service.formats.file_format import Format
from sae_service.schema import FormatName


def _discover() -> dict[str, Format]:
    found: dict[str, Format] = {}
    for name in FormatName:
        module = importlib.import_module(f"{__name__}.{name}")
        found[str(name)] = Format(module.FILES, module.to_files, module.from_files, module.sizes)
    return found


FORMATS: dict[str, Format] = _discover()
