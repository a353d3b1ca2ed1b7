"""The names of the file formats, for whoever must not import the formats themselves, which takes numpy and more."""

from enum import StrEnum, auto


class FormatName(StrEnum):
    """Each is a module in `formats/`."""

    saelens = auto()
    dictionary_learning = auto()
    gemma_scope = auto()
    sparsify = auto()
