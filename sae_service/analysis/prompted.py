"""What a job on prompts begins with: its model, its SAEs and what it reads."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from sae_service import __version__
from sae_service.activations import observed
from sae_service.activations import tokenizer as text
from sae_service.activations.model import LanguageModel
from sae_service.activations.model_check import Place, check
from sae_service.analysis.prompts import Reading, readings
from sae_service.analysis.subjects import subjects
from sae_service.errors import located
from sae_service.hub import pinned_model
from sae_service.sae.inference import InferenceSAE
from sae_service.spec import PromptedSpec
from sae_service.storage.provenance import revision
from sae_service.surroundings import Surroundings

EXCLUDED = ("bos", "eos", "pad")
SHORTEST = 2


@dataclass(frozen=True)
class Stage:
    """What is there before anything is measured.

    Attributes:
        widths: of the rows at each hook point.
        provenance: what a reader needs to make it again.
    """

    model: LanguageModel
    saes: dict[str, InferenceSAE]
    widths: dict[str, int]
    readings: list[Reading]
    provenance: dict[str, Any]

    @cached_property
    def texts(self) -> list[str]:
        """Of all tokens of the model."""
        return text.strings(self.model.tokenizer, self.model.n_vocab)

    @property
    def order(self) -> dict[str, int]:
        """The hook points of the SAEs, numbered in the order in which the model computes them."""
        fired = self.model.fired(self.model.sample(), self.widths)
        return {name: index for index, (name, _) in enumerate(fired)}


def opened(job: PromptedSpec, around: Surroundings, directions: tuple[Place, ...] = ()) -> Stage:
    """The model and the SAEs of a job, once they are there and fit, and its prompts.

    Args:
        directions: further hook points that are edited.

    Raises:
        InvalidSpec, ModelNotFound, DamagedCheckpoint, StorageFailure: something does not fit, or cannot be read.
    """
    assert job.model is not None, "the model of a job's SAEs is filled in when the job is submitted"
    exclude = EXCLUDED if job.exclude is None else job.exclude
    spec = pinned_model(job.model)
    found = subjects(job, around.storage, around.begin_with, around.roots).by_name if job.names else {}
    with located("/model", "/stream/model"):
        model = LanguageModel(spec, around.device, around.roots)
        read = readings(model, job.prompts, exclude)
        checked = check(model, SHORTEST, [*(subject.place for subject in found.values()), *directions])
    for warning in checked.warnings:
        around.warn(warning)
    made_by = {"sae-service": __version__, "device": jax.devices()[0].device_kind, "precision": model.precisions}
    source = {"spec": job.model_dump(mode="json"), "model": spec.revision or revision(spec.name, around.roots), **made_by}
    saes = {name: subject.placed(checked.widths) for name, subject in found.items()}
    return Stage(model, saes, checked.widths, read, source)


def rows_at(
    model: LanguageModel, tokens: np.ndarray, hook_names: tuple[str, ...]
) -> dict[str, Float[np.ndarray, "prompts positions width"]]:
    """The rows of each hook point as the model reads prompts of one length, undisturbed."""
    found: dict[str, np.ndarray] = {}
    observed.rows(model, tokens, hook_names, found.__setitem__)
    return found
