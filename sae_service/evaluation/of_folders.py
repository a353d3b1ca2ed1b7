"""What SAEs in folders are worth, and how alike two of them are, whoever has trained them."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from pydantic import ValidationError

from sae_service.activations.model import LanguageModel
from sae_service.errors import InvalidSpec
from sae_service.evaluation import feature_recovery
from sae_service.evaluation.on_text import evaluate
from sae_service.formats.folder import load
from sae_service.spec import StreamSpec
from sae_service.storage.artifacts import finite_or_null

NAMES = {"truth_to_learned": "a_to_b", "learned_to_truth": "b_to_a"}


def measured(folder: Path, format: str | None, hook_name: str, stream: dict[str, Any]) -> dict[str, Any]:
    """The metrics of the SAE in `folder` on held-out text, as JSON; see `evaluation.summary` for their definitions.

    Args:
        format: its file format, or None to take the one whose files are there.
        stream: a `StreamSpec` as its user writes it; its `tokens` are how many are measured.

    Raises:
        InvalidSpec, DamagedCheckpoint, ModelNotFound, DataNotFound: something does not fit, or cannot be read.
    """
    sae = load(folder, format)
    try:
        spec = StreamSpec.model_validate(stream)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidSpec(first["msg"], f"/{'/'.join(map(str, first['loc']))}") from error
    if spec.tokens < spec.context_size:
        raise InvalidSpec(f"must be at least context_size ({spec.context_size})", "/tokens")
    assert spec.model is not None
    model = LanguageModel(spec.model, "cuda" if jax.default_backend() == "gpu" else "cpu")
    found_d_in, d_in = sae.W_enc.shape[0], model.check((hook_name,), spec.context_size)[hook_name]
    if found_d_in != d_in:
        raise InvalidSpec(f"the SAE reads rows of {found_d_in} numbers, and those of {hook_name} have {d_in}")
    return finite_or_null(evaluate(spec, spec.tokens, model, {"sae": (hook_name, sae)})["sae"])


def compared(folder: Path, other: Path) -> dict[str, Any]:
    """How alike the decoder rows of two SAEs are, a and b: see `feature_recovery.similarity`, and what chance reaches beside it.

    Raises:
        InvalidSpec, DamagedCheckpoint: one of them cannot be read, or they do not read rows of the same width.
    """
    a, b = (np.asarray(load(path).W_dec) for path in (folder, other))
    if a.shape[1] != b.shape[1]:
        raise InvalidSpec(f"the SAEs read rows of {a.shape[1]} and {b.shape[1]} numbers, so no direction of one is in the other")
    of_control = {f"random_{name}": value for name, value in feature_recovery.control(a, len(b)).items()}
    found = feature_recovery.similarity(a, b) | feature_recovery.assignment(a, b) | of_control
    for before, after in NAMES.items():
        found = {name.replace(before, after): value for name, value in found.items()}
    return {"d_in": a.shape[1], "d_sae_a": len(a), "d_sae_b": len(b), **found}
