"""A job from its spec to its SAEs: the one place where stream, training, evaluation and storage meet."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol
from uuid import uuid4

import jax
from jaxtyping import Array

from sae_service import errors
from sae_service.activations.source import Source
from sae_service.activations.stream import ActivationStream, StreamPosition
from sae_service.architectures import ARCHITECTURES
from sae_service.evaluation.on_synthetic import evaluate_synthetic, observer
from sae_service.evaluation.on_text import evaluate
from sae_service.sae.inference import InferenceSAE, unscaled
from sae_service.spec import JobSpec, SAESpec
from sae_service.storage import artifacts, checkpoint
from sae_service.storage.checkpoint_writer import CheckpointWriter, on_host, snapshot
from sae_service.storage.objects import Storage
from sae_service.storage.provenance import provenance
from sae_service.training import start
from sae_service.training.loop import Trainer, activation_scale, continued, fitted, initial_state, schedule_warnings
from sae_service.training.start import Initial
from sae_service.training.step import TrainState


class Reporter(Protocol):
    """Where a job's news goes. A checkpoint may come from another thread than the rest."""

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
    begin_with: str | None = None,
    device: str = "cpu",
    alive: Callable[[], None] = lambda: None,
) -> Checkpoint | None:
    """Trains and evaluates the SAEs of a job. Returns the final checkpoint, or None if it was asked to stop.

    Asked to stop, it publishes a checkpoint of where it is, so that nothing is computed twice.

    Args:
        prefix: key below which checkpoints are published, each under a name of its own.
        resume_from: keys of checkpoints, the newest first; the job goes on from the first that is not damaged, to the
            same result as without the interruption.
        begin_with: key of the checkpoint of another job, to go on from where none of its own can be read.
        device: the language model's device, "cpu" or "cuda".
        alive: called with every step and every forward pass, from more than one thread.
    """
    source = Source(job, device)
    for index, sae in enumerate(job.saes):
        for warning in schedule_warnings(job, sae):
            reporter.event("warning", f"saes[{index}].{warning}")
    if job.gpus > len(jax.devices()):
        reporter.event("warning", f"gpus: {job.gpus} were asked for, and the SAEs share the {len(jax.devices())} that there are.")
    # The initial states have no name here, which would keep them on the device beside those of a checkpoint.
    restored = _restored(
        {sae.name: initial_state(job, sae, source.widths[sae.hook_name]) for sae in job.saes},
        storage, reporter, resume_from, begin_with,
    )  # fmt: skip
    training = _Training(job, storage, prefix, reporter, source, alive, *restored)
    try:
        return training.finish(should_stop) if training.train(should_stop) else None
    except errors.Stopped:
        return None
    finally:
        training.writer.close()
        training.stream.close()


def _restored(
    blank: dict[str, TrainState], storage: Storage, reporter: Reporter, resume_from: Sequence[str], begin_with: str | None
) -> tuple[dict[str, TrainState], dict[str, Any]]:
    """The states to go on from, and what a checkpoint holds beside them.

    Raises:
        StorageFailure: none of the checkpoints was ever published here: beginning anew would give them all up.
    """
    known = resume_from or ([begin_with] if begin_with else [])
    if known and not any(storage.has_published(key) for key in known):
        raise errors.StorageFailure(
            f"the storage has none of the job's {len(known)} checkpoints, {known[0]} the newest: it is not the "
            "one to which they were written, or was emptied.",
            hint="Give the API and all workers, on every host, the same SAE_SERVICE_STORAGE_URL.",
        )
    for key in resume_from:
        try:
            return checkpoint.from_files(storage.read_published(key, below="state/"), blank)
        except errors.DamagedCheckpoint as error:
            reporter.event("warning", f"{error} The one before it is used.")
    if begin_with is not None:
        # Without it this would be another job, so there is nothing to fall back on.
        return checkpoint.from_files(storage.read_published(begin_with, below="state/"), blank)
    return blank, {"position": {}, "n_steps": 0, "scales": {}}


class _Training:
    """The moving parts of one attempt at a job."""

    def __init__(
        self, job: JobSpec, storage: Storage, prefix: str, reporter: Reporter, source: Source,
        alive: Callable[[], None], states: dict[str, TrainState], values: dict[str, Any],
    ) -> None:  # fmt: skip
        self.job, self.storage, self.prefix, self.reporter, self.source = job, storage, prefix, reporter, source
        self.position = StreamPosition.model_validate(values["position"])
        self.states, self.scales, self.saved_step = states, values["scales"], values["n_steps"]
        self.alive = alive
        self.trainer: Trainer | None = None
        self.writer = CheckpointWriter()
        self.initial = {} if self.saved_step else self.read_initial()
        self.hashes = values.get("initial", {}) | {name: found.sha256 for name, found in self.initial.items()}
        self.provenance = provenance(job, jax.devices()[0].device_kind) | {"initial": self.hashes}
        # Last: from here on a thread has to be stopped.
        self.stream = ActivationStream(job.stream, source.harvest(self.position.fill_start), self.position, alive)

    def read_initial(self) -> dict[str, Initial]:
        """What SAEs of the job start from, by name, for a job that is at its beginning."""
        return {
            sae.name: start.load(sae, index, self.source.widths[sae.hook_name])
            for index, sae in enumerate(self.job.saes)
            if sae.initial is not None
        }

    def train(self, should_stop: Callable[[], bool]) -> bool:
        """Trains to the end, or to the next step at which it should stop. Returns whether the end was reached."""
        for fill in self.stream.fills(should_stop):
            if self.trainer is None:
                self.trainer = self.begin(fill.rows)
            for batch, position in self.stream.batches(fill):
                if should_stop():
                    self.save_and_wait()
                    return False
                self.writer.check()
                self.trainer.step(batch)
                self.alive()
                self.position = position
                is_last = self.trainer.n_steps == self.job.stream.n_steps
                if not is_last and self.trainer.n_steps % self.job.checkpoint_every_steps == 0:
                    self.save()
        if (self.trainer.n_steps if self.trainer else self.saved_step) < self.job.stream.n_steps:
            self.save_and_wait()
            return False
        # A checkpoint of the last step has only the evaluation before it.
        self.trainer = self.trainer or self.begin({})
        return True

    def begin(self, rows: dict[str, Any]) -> Trainer:
        """The trainer, fitted to the first fill, which is complete before its first row is served: that uses up none."""
        if self.saved_step == 0:
            self.scales = {sae.name: activation_scale(sae, rows[sae.hook_name]) for sae in self.job.saes}
            for sae in self.job.saes:
                self.states[sae.name] = self.started(sae, self.scales[sae.name], rows[sae.hook_name])
        observe = observer(self.job) if self.job.stream.synthetic else lambda sae: {}
        return Trainer(self.job, self.states, self.scales, self.reporter.metrics, self.saved_step, observe)

    def started(self, sae: SAESpec, scale: float, rows: Array) -> TrainState:
        """The state of one SAE before its first step: what it is to start from, or else fitted to the rows."""
        state = self.states[sae.name]
        if sae.name not in self.initial:
            return fitted(state, sae, scale, rows)
        return continued(state, start.parameters(sae, self.initial.pop(sae.name), scale))

    def finish(self, should_stop: Callable[[], bool]) -> Checkpoint:
        """Evaluates the SAEs on held-out text and publishes the final checkpoint. Raises Stopped."""
        assert self.trainer is not None
        self.trainer.check()
        state = snapshot(self.trainer.states)
        trained_s, tokens_per_s = self.trainer.seconds(), self.trainer.tokens_per_s()
        exported = {sae.name: (sae.hook_name, self.exported(sae, state)) for sae in self.job.saes}
        with ExitStack() as unless_measured:
            # What has been trained is not lost with its evaluation.
            unless_measured.callback(self.save_and_wait)
            measured = self.evaluated(exported, should_stop)
            unless_measured.pop_all()
        for sae in self.job.saes:
            measured[sae.name]["dead_share"] = self.trainer.dead_share(sae)
            measured[sae.name]["tokens_per_s"] = tokens_per_s
        self.writer.finish()
        if self.writer.waited_s:
            share = self.writer.waited_s / max(trained_s, self.writer.waited_s)
            self.reporter.event("info", f"Training waited {self.writer.waited_s:.2f} s for checkpoints, {share:.2%} of its time.")
        return self.publish(state, self.values(), measured)

    def evaluated(self, saes: dict[str, tuple[str, InferenceSAE]], should_stop: Callable[[], bool]) -> dict[str, Any]:
        """The held-out metrics of each SAE, by its name."""
        if self.source.model is None:
            return evaluate_synthetic(self.job, saes)

        def ends_here() -> bool:
            self.alive()
            return should_stop()

        return evaluate(self.job.stream, self.job.evaluation.tokens, self.source.model, saes, ends_here)

    def exported(self, sae: SAESpec, states: dict[str, TrainState]) -> InferenceSAE:
        """The public form of one SAE, for raw activations."""
        parameters = jax.device_put(states[sae.name].parameters)
        return unscaled(ARCHITECTURES[sae.architecture.kind].export(sae.architecture, parameters), self.scales[sae.name])

    def values(self) -> dict[str, Any]:
        """What a checkpoint holds beside the arrays."""
        assert self.trainer is not None
        return {
            "position": self.position.model_dump(mode="json"),
            "n_steps": self.trainer.n_steps,
            "scales": self.scales,
            "initial": self.hashes,
        }

    def save(self) -> None:
        """Publishes a checkpoint if there has been a step since the last one, while training goes on."""
        if self.trainer is not None and self.trainer.n_steps > self.saved_step:
            self.saved_step = self.trainer.n_steps
            # The steps that are still being computed are no cost of the checkpoint.
            jax.block_until_ready(self.trainer.states)
            self.writer.write(self.prepare)

    def save_and_wait(self) -> None:
        """Publishes a checkpoint of the last step, unless there is one, and waits for it."""
        self.save()
        self.writer.finish()

    def prepare(self) -> Callable[[], Checkpoint]:
        """Copies what a checkpoint needs. Returns what is left to do: to publish it."""
        assert self.trainer is not None
        self.trainer.check()
        state, values = snapshot(self.trainer.states), self.values()
        return partial(self.publish, state, values)

    def publish(
        self, states: dict[str, TrainState], values: dict[str, Any], metrics: dict[str, Any] | None = None
    ) -> Checkpoint:
        """Writes the state and the SAEs under a key of their own, and reports them once they are complete.

        Args:
            metrics: the held-out metrics by SAE, which make it the final checkpoint.
        """
        files, n_steps = checkpoint.to_files(states, values), values["n_steps"]
        for sae in self.job.saes:
            # Not on the device, whose memory training has filled.
            with on_host():
                public = self.exported(sae, states)
            found = artifacts.to_files(public, self.job, sae, self.provenance)
            if metrics is not None:
                found[artifacts.METRICS] = artifacts.as_json(metrics[sae.name])
            files |= {f"saes/{sae.name}/{name}": content for name, content in found.items()}
        key = f"{self.prefix}/step-{n_steps:09d}-{uuid4().hex[:12]}"
        entries = self.storage.publish(key, files)
        tokens = n_steps * self.job.stream.batch
        written = Checkpoint(key, n_steps, tokens, metrics is not None, entries, metrics or {})
        self.reporter.checkpoint(written)
        return written
