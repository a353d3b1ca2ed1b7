"""In which precision the products of a job run, which its user states or the device decides."""

from sae_service.schema import Precision
from sae_service.spec.stream import ModelSpec


def resolved(wanted: Precision | None, device: str) -> Precision:
    """What runs.

    Args:
        device: "cpu", or the name of one that multiplies tensorfloat32.
    """
    if device == "cpu":
        return "bfloat16" if wanted == "bfloat16" else "float32"
    return wanted or "tensorfloat32"


def of_model(model: ModelSpec, device: str) -> str:
    """What a model's products run in: weights that are held in 16 bits are multiplied as they are."""
    return resolved(model.precision, device) if model.dtype == "float32" else model.dtype
