"""What SAEs in folders are worth, and how alike two of them are, whoever has trained them."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from pydantic import ValidationError

from sae_service.activations.model import LanguageModel
from sae_service.activations.model_check import Place, check
from sae_service.errors import InvalidSpec
from sae_service.evaluation import feature_recovery
from sae_service.evaluation.on_text import HeldOutText
from sae_service.formats.folder import check_autoencoder, load
from sae_service.hub import pinned
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.sites import Sites, at, check_width
from sae_service.spec import StreamSpec
from sae_service.storage.artifacts import finite_or_null

NAMES = {"truth_to_learned": "a_to_b", "learned_to_truth": "b_to_a"}


def measured(folder: Path, format: str | None, hook_name: str, stream: dict[str, Any]) -> dict[str, Any]:
    """The metrics of the SAE in `folder` on held-out text, as JSON; see `on_text` for their definitions.

    Args:
        format: its file format, or None to take the one whose files are there.
        hook_name: where it reads. One that reads or writes several hook points does so where its file says.
        stream: a `StreamSpec` as its user writes it; its `tokens` are how many are measured.

    Raises:
        InvalidSpec, DamagedCheckpoint, ModelNotFound, DataNotFound: something does not fit, or cannot be read.
    """
    sae = load(folder, format)
    try:
        spec = pinned(StreamSpec.model_validate(stream))
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidSpec(first["msg"], f"/{'/'.join(map(str, first['loc']))}") from error
    if spec.tokens < spec.context_size:
        raise InvalidSpec(f"must be at least context_size ({spec.context_size})", "/tokens")
    sites = sites_of(sae, hook_name)
    model = LanguageModel(spec.text_source[0], "cuda" if jax.default_backend() == "gpu" else "cpu")
    found = check(model, spec.context_size, [Place(sites.reads, sites.writes)]).widths
    for verb, widths in (("reads", sites.read), ("writes", sites.write)):
        for name, width in widths:
            check_width(verb, width, name, found[name])
    return finite_or_null(HeldOutText(spec, spec.tokens, model).evaluate({"sae": lambda: sae.replace(sites=sites)})["sae"])


def sites_of(sae: InferenceSAE, hook_name: str) -> Sites:
    """Where the SAE reads and writes: at `hook_name`, if it has one hook point, or else where its file says.

    Raises:
        InvalidSpec: its file does not say, or it does not read `hook_name`.
    """
    if sae.sites is None or (sae.sites.is_autoencoder and len(sae.sites.read) == 1):
        d_read, d_write = sae.W_enc.shape[0], sae.W_dec.shape[1]
        if d_read != d_write or sae.W_skip is not None:
            raise InvalidSpec(
                f"the SAE reads rows of {d_read} numbers and writes others, of {d_write}; its file does not say where"
            )
        return at(hook_name, d_read)
    if hook_name not in sae.sites.reads:
        read, written = (", ".join(names) for names in (sae.sites.reads, sae.sites.writes))
        raise InvalidSpec(f"the SAE does not read {hook_name}: its file says that it reads {read} and writes {written}")
    return sae.sites


def compared(folder: Path, other: Path, format: str | None = None, other_format: str | None = None) -> dict[str, Any]:
    """How alike the decoder rows of two SAEs are, a and b: see `feature_recovery.similarity`, and what chance reaches beside it.

    Args:
        format: file format of the first, or None to take the one whose files are there; other_format is the other's.

    Raises:
        InvalidSpec, DamagedCheckpoint: one of them cannot be read, or they do not read rows of the same width.
    """
    saes = load(folder, format), load(other, other_format)
    for path, sae in zip((folder, other), saes, strict=True):
        check_autoencoder(sae, str(path))
    a, b = (np.asarray(sae.W_dec) for sae in saes)
    if a.shape[1] != b.shape[1]:
        raise InvalidSpec(f"the SAEs read rows of {a.shape[1]} and {b.shape[1]} numbers, so no direction of one is in the other")
    of_control = {f"random_{name}": value for name, value in feature_recovery.control(a, len(b)).items()}
    found = feature_recovery.similarity(a, b) | feature_recovery.assignment(a, b) | of_control
    for before, after in NAMES.items():
        found = {name.replace(before, after): value for name, value in found.items()}
    return {"d_in": a.shape[1], "d_sae_a": len(a), "d_sae_b": len(b), **found}
