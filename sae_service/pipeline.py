"""A job from its spec to its SAEs: the one place where stream, training, evaluation and storage meet."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import uuid4

import jax
from jaxtyping import Array

from sae_service import artifacts, checkpoint, errors, initial
from sae_service.activations.source import Source
from sae_service.activations.stream import ActivationStream, StreamPosition
from sae_service.architectures import ARCHITECTURES
from sae_service.evaluation import evaluate
from sae_service.initial import Initial
from sae_service.provenance import provenance
from sae_service.sae import InferenceSAE, unscaled
from sae_service.spec import JobSpec, SAESpec
from sae_service.storage import Storage
from sae_service.synthetic_evaluation import evaluate_synthetic, observer
from sae_service.training.loop import Trainer, activation_scale, continued, fitted, initial_state
from sae_service.training.optimizer import warm_up_warnings
from sae_service.training.step import TrainState


class Reporter(Protocol):
    """Where a job's news goes."""

    def event(self, level: str, message: str) -> None:
        """Something happened that a user may want to read: level info, warning or error."""
        ...

    def metrics(self, rows: list[dict[str, Any]]) -> None:
        """One row of training metrics for each SAE."""
        ...

    def checkpoint(self, written: "Checkpoint") -> None:
        """A checkpoint is on storage, complete."""
        ...


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint. Each SAE's files are below `saes/<name>/`; a final one has their metrics."""

    key: str
    step: int
    tokens: int
    is_final: bool
    files: list[dict[str, str | int]]
    metrics: dict[str, Any]


def run(
    job: JobSpec,
    storage: Storage,
    prefix: str,
    reporter: Reporter,
    should_stop: Callable[[], bool] = lambda: False,
    resume_from: Sequence[str] = (),
    device: str = "cpu",
) -> Checkpoint | None:
    """Trains and evaluates the SAEs of a job. Returns the final checkpoint, or None if it was asked to stop.

    Asked to stop, it publishes a checkpoint of where it is, so that nothing is computed twice.

    Args:
        prefix: key below which checkpoints are published, each under a name of its own.
        resume_from: keys of checkpoints, the newest first; the job goes on from the first that is not damaged, to the
            same result as without the interruption.
        device: the language model's device, "cpu" or "cuda".
    """
    source = Source(job, device)
    for index, sae in enumerate(job.saes):
        for warning in warm_up_warnings(sae.optimizer, job.stream.n_steps):
            reporter.event("warning", f"saes[{index}].{warning}")
    training = _Training(job, storage, prefix, reporter, source, resume_from)
    try:
        return training.finish() if training.train(should_stop) else None
    finally:
        training.stream.close()


class _Training:
    """The moving parts of one attempt at a job."""

    def __init__(
        self, job: JobSpec, storage: Storage, prefix: str, reporter: Reporter, source: Source, resume_from: Sequence[str]
    ) -> None:
        self.job, self.storage, self.prefix, self.reporter, self.source = job, storage, prefix, reporter, source
        states = {sae.name: initial_state(job, sae, source.widths[sae.hook_name]) for sae in job.saes}
        values: dict[str, Any] = {"position": {}, "n_steps": 0, "scales": {}}
        for key in resume_from:
            try:
                states, values = checkpoint.from_files(storage.read_published(key, below="state/"), states)
            except errors.DamagedCheckpoint as error:
                reporter.event("warning", f"{error} The one before it is used.")
                continue
            break
        self.position = StreamPosition.model_validate(values["position"])
        self.stream = ActivationStream(job.stream, source.harvest(self.position.fill_start), self.position)
        self.states, self.scales, self.n_steps = states, values["scales"], values["n_steps"]
        self.trainer: Trainer | None = None
        self.initial = {} if self.n_steps else self.read_initial()
        self.hashes = values.get("initial", {}) | {name: found.sha256 for name, found in self.initial.items()}
        self.provenance = provenance(job, jax.devices()[0].device_kind) | {"initial": self.hashes}

    def read_initial(self) -> dict[str, Initial]:
        """What SAEs of the job start from, by name, for a job that is at its beginning."""
        return {
            sae.name: initial.load(sae, index, self.source.widths[sae.hook_name])
            for index, sae in enumerate(self.job.saes)
            if sae.initial is not None
        }

    def train(self, should_stop: Callable[[], bool]) -> bool:
        """Trains to the end, or to the next step at which it should stop. Returns whether the end was reached."""
        for fill in self.stream.fills():
            if self.trainer is None:
                self.trainer = self.begin(fill.rows)
            for batch, position in self.stream.batches(fill):
                if should_stop():
                    self.publish_unless_known()
                    return False
                self.trainer.step(batch)
                self.position = position
                is_last = self.trainer.n_steps == self.job.stream.n_steps
                if not is_last and self.trainer.n_steps % self.job.checkpoint_every_steps == 0:
                    self.publish_unless_known()
        if self.trainer is None:
            raise errors.DamagedCheckpoint("the checkpoint is at the end of the job already")
        return True

    def begin(self, rows: dict[str, Any]) -> Trainer:
        """The trainer, fitted to the first fill, which is complete before its first row is served: that uses up none."""
        scales = self.scales or {sae.name: activation_scale(sae, rows[sae.hook_name]) for sae in self.job.saes}
        if self.n_steps == 0:
            for sae in self.job.saes:
                self.states[sae.name] = self.started(sae, scales[sae.name], rows[sae.hook_name])
        observe = observer(self.job) if self.job.stream.synthetic else lambda sae: {}
        return Trainer(self.job, self.states, scales, self.reporter.metrics, self.n_steps, observe)

    def started(self, sae: SAESpec, scale: float, rows: Array) -> TrainState:
        """The state of one SAE before its first step: what it is to start from, or else fitted to the rows."""
        state = self.states[sae.name]
        if sae.name not in self.initial:
            return fitted(state, sae, scale, rows)
        return continued(state, initial.parameters(sae, self.initial.pop(sae.name), scale))

    def finish(self) -> Checkpoint:
        """Evaluates the SAEs on held-out text and publishes the final checkpoint."""
        assert self.trainer is not None
        self.trainer.check()
        exported = {sae.name: (sae.hook_name, self.exported(sae)) for sae in self.job.saes}
        measured = self.evaluated(exported)
        for sae in self.job.saes:
            measured[sae.name]["dead_share"] = self.trainer.dead_share(sae)
            measured[sae.name]["tokens_per_s"] = self.trainer.tokens_per_s()
        return self.publish(is_final=True, metrics=measured)

    def evaluated(self, saes: dict[str, tuple[str, InferenceSAE]]) -> dict[str, Any]:
        """The held-out metrics of each SAE, by its name."""
        if self.source.model is None:
            return evaluate_synthetic(self.job, saes)
        return evaluate(self.job.stream, self.job.evaluation.tokens, self.source.model, saes)

    def exported(self, sae: SAESpec) -> InferenceSAE:
        """The public form of one SAE, for raw activations."""
        assert self.trainer is not None
        parameters = self.trainer.states[sae.name].parameters
        inference = ARCHITECTURES[sae.architecture.kind].export(sae.architecture, parameters)
        return unscaled(inference, self.trainer.scales[sae.name])

    def publish_unless_known(self) -> None:
        """Publishes a checkpoint if there has been a step since the last one."""
        if self.trainer is not None and self.trainer.n_steps > self.n_steps:
            self.publish(is_final=False, metrics={})

    def publish(self, is_final: bool, metrics: dict[str, Any]) -> Checkpoint:
        """Writes the state and the SAEs under a key of their own, and reports them once they are complete."""
        trainer = self.trainer
        assert trainer is not None
        trainer.check()
        values = {
            "position": self.position.model_dump(mode="json"),
            "n_steps": trainer.n_steps,
            "scales": trainer.scales,
            "initial": self.hashes,
        }
        files = checkpoint.to_files(trainer.states, values)
        for sae in self.job.saes:
            found = artifacts.to_files(self.exported(sae), self.job, sae, self.provenance)
            if is_final:
                found[artifacts.METRICS] = artifacts.as_json(metrics[sae.name])
            files |= {f"saes/{sae.name}/{name}": content for name, content in found.items()}
        key = f"{self.prefix}/step-{trainer.n_steps:09d}-{uuid4().hex[:12]}"
        entries = self.storage.publish(key, files)
        tokens = trainer.n_steps * self.job.stream.batch
        written = Checkpoint(key, trainer.n_steps, tokens, is_final, entries, metrics)
        self.n_steps = trainer.n_steps
        self.reporter.checkpoint(written)
        return written
