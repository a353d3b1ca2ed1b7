"""Errors of libraries, turned into errors that name the field to blame."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sae_service.errors import NO_MEMORY, OutOfMemory, SAEServiceError


@contextmanager
def blamed(kind: type[SAEServiceError], said: str, param: str | None, hint: str = "") -> Iterator[None]:
    """Raises `kind` for whatever a library raises, once: it would come again.

    Memory that does not suffice is OutOfMemory. A failure of the device itself is nobody's fault and is left as it is.
    """
    try:
        yield
    except (SAEServiceError, MemoryError, torch.AcceleratorError):
        raise
    except Exception as error:
        reason = (str(error).strip() or "no reason given").splitlines()[0].removesuffix(".")
        if any(sign in str(error) for sign in NO_MEMORY):
            hint = "Load the model in another dtype, or take a smaller one."
            raise OutOfMemory(f"the device's memory does not suffice: {reason}.", "/stream/model", hint) from error
        raise kind(f"{said}: {type(error).__name__}: {reason}.", param, hint) from error
