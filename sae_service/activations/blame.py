"""Errors of torch and of the model's library, turned into errors that name the field to blame."""

from contextlib import AbstractContextManager

import torch

from sae_service.errors import NO_MEMORY, OutOfMemory, SAEServiceError, translated
from sae_service.spec import fields


def blamed(kind: type[SAEServiceError], said: str, param: str | None, hint: str = "") -> AbstractContextManager[None]:
    """Raises `kind` for whatever a library raises, once: it would come again.

    Memory that does not suffice is OutOfMemory. A failure of the device itself is nobody's fault and is left as it is.
    """

    def translate(error: Exception) -> SAEServiceError | None:
        if isinstance(error, torch.AcceleratorError):
            return None
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # A line that ends with a colon only announces the next.
        n_lines = 2 if lines and lines[0].endswith(":") else 1
        reason = " ".join(lines[:n_lines]).removesuffix(".") or "no reason given"
        if any(sign in str(error) for sign in NO_MEMORY):
            return OutOfMemory(f"the device's memory does not suffice: {reason}.", fields.MODEL, fields.SMALLER_MODEL)
        return kind(f"{said}: {type(error).__name__}: {reason}.", param, hint)

    return translated(translate)
