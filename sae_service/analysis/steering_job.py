"""A job that steers a model, from the direction to the published files: what `kind: steering` does."""

from functools import partial
from typing import Any

import numpy as np

from sae_service.activations.model_check import Place
from sae_service.analysis import prompted
from sae_service.analysis.prompted import Stage, opened
from sae_service.analysis.prompts import token_id
from sae_service.analysis.steering import results
from sae_service.analysis.steering.continuations import continuations
from sae_service.analysis.steering.direction import Direction, Strengths, edited, given, of_latent, row_norm
from sae_service.analysis.steering.files import COLUMNS, RECORD
from sae_service.analysis.steering.leftover import error_term
from sae_service.analysis.steering.parts import Split, split
from sae_service.analysis.steering.records import Steering
from sae_service.analysis.steering.scan import OfPrompt, Scan
from sae_service.errors import InvalidSpec, Stopped
from sae_service.news import Checkpoint, stop_if_asked
from sae_service.spec import SteeringSpec
from sae_service.surroundings import Surroundings


def run(job: SteeringSpec, around: Surroundings) -> Checkpoint | None:
    """Steers a model at each coefficient. Short, and without a state to go on from: an attempt begins anew, to the same bytes.

    Returns the final checkpoint, or None if it was asked to stop.

    Raises:
        InvalidSpec, ModelNotFound, DamagedCheckpoint, StorageFailure: something does not fit, or cannot be read.
    """
    stage = opened(job, around, () if job.hook_name is None else (Place((job.hook_name,), (job.hook_name,), ""),))
    steered = _Steered(job, stage, around)
    try:
        return steered.finished()
    except Stopped:
        return None


class _Steered:
    """One attempt at a job."""

    def __init__(self, job: SteeringSpec, stage: Stage, around: Surroundings) -> None:
        """Finds all that can be wrong with the fields before the model reads a prompt."""
        self._job, self._stage, self._around, self._model = job, stage, around, stage.model
        self._stop_if_asked = partial(stop_if_asked, around.should_stop, around.alive)
        self._sae_name, self._direction = self._found_direction()
        for one in stage.readings:
            edited(job, one)
        self._check_length()
        self._followed = [token_id(self._model, token, f"/logits/{index}") for index, token in enumerate(job.logits)]
        self._pair, self._split = self._contrast()

    def _found_direction(self) -> tuple[str | None, Direction]:
        if self._job.direction is not None:
            assert self._job.hook_name is not None
            return None, given(self._job.direction, self._job.hook_name, self._stage.widths[self._job.hook_name])
        ((name, sae),) = self._stage.saes.items()
        assert self._job.latent is not None
        return name, of_latent(sae, self._job.latent)

    def _check_length(self) -> None:
        longest, asked = self._model.bridge.cfg.n_ctx, self._job.continuations
        for one in self._stage.readings if asked is not None else ():
            if asked is not None and len(one.tokens) + asked.tokens > longest:
                message = f"must be at most {longest - len(one.tokens)}: {one.place} and what follows fill the context of {longest}"
                raise InvalidSpec(message, "/continuations/tokens")

    def _contrast(self) -> tuple[tuple[int, int] | None, Split | None]:
        if self._job.contrast is None:
            return None, None
        first, second = (token_id(self._model, token, f"/contrast/{index}") for index, token in enumerate(self._job.contrast))
        return (first, second), split(self._model, self._direction, first, second)

    def finished(self) -> Checkpoint:
        """Scans, and publishes what comes of it. Raises Stopped."""
        job, read = self._job, self._stage.readings
        norm = row_norm(self._model, self._direction, read)
        strengths = Strengths(job, self._direction, norm if job.unit == "row_norm" else 1.0)
        self._around.reporter.event("info", f"Steering at {len(job.scanned)} coefficients; prompts: {len(read)}.")
        scan = Scan(job, self._model, strengths, (*self._followed, *(self._pair or ())), self._split)
        found = [scan.on(one, self._stop_if_asked) for one in read]
        written = []
        if job.continuations is not None:
            is_excluded = self._is_excluded()
            for index, one in enumerate(read):
                written += continuations(job, self._model, strengths, index, one, is_excluded, self._stop_if_asked)
        sae = self._direction.sae
        beside = {
            "error_term": None if sae is None else error_term(self._model, sae, read, self._stop_if_asked),
            "continuations": tuple(written), "row_norm": norm, "unit_size": strengths.unit,
        }  # fmt: skip
        record = self._record(found, beside)
        files = {RECORD: record.model_dump_json(indent=1).encode(), COLUMNS: results.columns(found)}
        n_tokens = sum(len(one.tokens) for one in read)
        return self._around.publish(files, len(read), n_tokens, {}, is_final=True)

    def _is_excluded(self) -> np.ndarray:
        exclude = prompted.EXCLUDED if self._job.exclude is None else self._job.exclude
        found = np.zeros(self._model.n_vocab, bool)
        found[[token for token in self._model.excluded_tokens(exclude) if token < len(found)]] = True
        return found

    def _record(self, found: list[OfPrompt], beside: dict[str, Any]) -> Steering:
        job, pair = self._job, self._pair
        assert job.model is not None
        there = np.concatenate([of.there[one.keep] for one, of in zip(self._stage.readings, found, strict=True)])
        return Steering(
            model=job.model.name, sae=self._sae_name, latent=job.latent, hook_names=tuple(self._direction.parts), mode=job.mode,
            unit=job.unit, direction_length=self._direction.length, largest_activation=float(there.max()),
            coefficients=job.scanned, prompts=results.prompts_read(self._model, self._stage.readings, found),
            logits=results.logit_profiles(self._model, self._followed, found),
            contrast=pair and self._split
            and results.contrast_profile(self._model, self._split, pair, found, job.clusters),
            provenance=self._stage.provenance, **results.profiles(found), **beside,
        )  # fmt: skip
