"""A job from its spec to its SAEs: the one place where stream, training, evaluation and storage meet."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol
from uuid import uuid4

import jax

from sae_service import errors
from sae_service.activations.source import Source
from sae_service.activations.stream import ActivationStream, StreamPosition
from sae_service.architectures import ARCHITECTURES
from sae_service.evaluation.on_synthetic import evaluate_synthetic, observer
from sae_service.evaluation.on_text import evaluate
from sae_service.sae.inference import InferenceSAE, Sites, unscaled
from sae_service.spec import JobSpec, SAESpec
from sae_service.storage import artifacts, checkpoint
from sae_service.storage.checkpoint_writer import CheckpointWriter, on_host, snapshot
from sae_service.storage.objects import Content, Storage
from sae_service.storage.provenance import provenance
from sae_service.training import memory, start
from sae_service.training.cohort import public
from sae_service.training.loop import Trainer, schedule_warnings
from sae_service.training.placement import Placement, placement
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
    setting = Setting(job, source, placement(job))
    setting.check_memory(reporter)
    found = checkpoint.restored(storage, resume_from, begin_with, setting.shapes(), partial(reporter.event, "warning"))
    states, values = found or ({}, {"position": {}, "n_steps": 0, "scales": {}})
    training = _Training(setting, storage, prefix, reporter, alive, states, values)
    try:
        return training.finish(should_stop) if training.train(should_stop) else None
    except errors.Stopped:
        return None
    finally:
        training.writer.close()
        training.stream.close()


@dataclass(frozen=True)
class Setting:
    """What an attempt knows of a job before it trains: where its rows come from, and where its SAEs are and live."""

    job: JobSpec
    source: Source
    placement: Placement

    @cached_property
    def sites(self) -> dict[str, Sites]:
        """Where each SAE reads and writes."""
        return {sae.name: sae.sites(self.source.widths) for sae in self.job.saes}

    def check_memory(self, reporter: Reporter) -> None:
        """Says what memory the job needs. Raises OutOfMemory if that is more than the device has."""
        wanted = memory.plan(self.job, self.sites, self.placement, self.source.row_bytes, self.source.model_bytes)
        reporter.event("info", wanted.said())
        if warning := wanted.check(memory.device_limit()):
            reporter.event("warning", warning)

    def shapes(self) -> dict[str, TrainState]:
        """The shapes of the states, and their places."""
        return {sae.name: self.placement.of(sae.name, start.shapes(sae, self.sites[sae.name])) for sae in self.job.saes}


class _Training:
    """The moving parts of one attempt at a job."""

    def __init__(
        self, setting: Setting, storage: Storage, prefix: str, reporter: Reporter,
        alive: Callable[[], None], states: dict[str, TrainState], values: dict[str, Any],
    ) -> None:  # fmt: skip
        self.setting, self.job, self.source = setting, setting.job, setting.source
        self.storage, self.prefix, self.reporter = storage, prefix, reporter
        self.position = StreamPosition.model_validate(values["position"])
        self.states, self.scales, self.saved_step = states, values["scales"], values["n_steps"]
        self.alive = alive
        self.trainer: Trainer | None = None
        self.writer = CheckpointWriter()
        self.initial = {} if self.saved_step else self.read_initial()
        self.hashes = values.get("initial", {}) | {name: found.sha256 for name, found in self.initial.items()}
        self.provenance = provenance(self.job, jax.devices()[0].device_kind) | {"initial": self.hashes}
        # Last: from here on a thread has to be stopped.
        harvest = self.source.harvest(self.position.fill_start)
        self.stream = ActivationStream(self.job.stream, harvest, self.position, alive, self.source.row_bytes)

    def read_initial(self) -> dict[str, Initial]:
        """What SAEs of the job start from, by name, for a job that is at its beginning."""
        return {
            sae.name: start.load(sae, index, self.source.widths)
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
                if not is_last and self.is_due(self.trainer.n_steps):
                    self.save()
        if (self.trainer.n_steps if self.trainer else self.saved_step) < self.job.stream.n_steps:
            self.save_and_wait()
            return False
        # A checkpoint of the last step has only the evaluation before it.
        self.trainer = self.trainer or self.begin({})
        return True

    def is_due(self, n_steps: int) -> bool:
        """Whether a checkpoint is to be written after so many steps."""
        every = self.job.checkpoint_every_steps
        return self.writer.is_due() if every is None else n_steps % every == 0

    def begin(self, rows: dict[str, Any]) -> Trainer:
        """The trainer, fitted to the first fill, which is complete before its first row is served: that uses up none."""
        if self.saved_step == 0:
            self.scales = start.measured_scales(self.job, rows)
            self.states = {sae.name: self.started(sae, rows) for sae in self.job.saes}
        observe = observer(self.job) if self.job.stream.synthetic else None
        at, places = self.setting.sites, self.setting.placement
        return Trainer(self.job, at, self.states, self.scales, places, self.reporter.metrics, self.saved_step, observe)

    def started(self, sae: SAESpec, rows: dict[str, Any]) -> TrainState:
        """The state of one SAE before its first step: what it is to start from, or else drawn and fitted to the rows."""
        sites, scales, places = self.setting.sites[sae.name], self.scales[sae.name], self.setting.placement
        if sae.name in self.initial:
            return start.from_weights(sae, sites, scales, self.initial.pop(sae.name), places)
        return start.drawn_and_fitted(self.job, sae, sites, scales, rows, places)

    def finish(self, should_stop: Callable[[], bool]) -> Checkpoint:
        """Evaluates the SAEs on held-out text and publishes the final checkpoint. Raises Stopped."""
        assert self.trainer is not None
        self.trainer.check()
        trained_s, tokens_per_s, values = self.trainer.seconds(), self.trainer.tokens_per_s(), self.values()
        dead_shares = {sae.name: self.trainer.dead_share(sae) for sae in self.job.saes}
        state = snapshot(self.trainer.states)
        # From here on the device is the evaluation's.
        self.trainer.states.clear()
        try:
            measured = self.evaluated(state, should_stop)
        except BaseException:
            # What has been trained is not lost with its evaluation.
            self.writer.finish()
            if values["n_steps"] > self.saved_step:
                self.publish(state, values)
            raise
        for name, figures in measured.items():
            figures |= {"dead_share": dead_shares[name], "tokens_per_s": tokens_per_s}
        self.writer.finish()
        if self.writer.waited_s:
            share = self.writer.waited_s / max(trained_s, self.writer.waited_s)
            self.reporter.event("info", f"Training waited {self.writer.waited_s:.2f} s for checkpoints, {share:.2%} of its time.")
        return self.publish(state, values, measured)

    def evaluated(self, states: dict[str, TrainState], should_stop: Callable[[], bool]) -> dict[str, Any]:
        """The held-out metrics of each SAE, by its name, of states on the host."""
        saes = {sae.name: partial(self.exported, sae, states) for sae in self.job.saes}
        if self.source.model is None:
            return evaluate_synthetic(self.job, saes, should_stop)

        def ends_here() -> bool:
            self.alive()
            return should_stop()

        return evaluate(self.job.stream, self.job.evaluation.tokens, self.source.model, saes, ends_here)

    def exported(self, sae: SAESpec, states: dict[str, TrainState]) -> InferenceSAE:
        """The public form of one SAE, for raw activations, on the host: training may have filled the device."""
        with on_host():
            architecture, sites = ARCHITECTURES[sae.architecture.kind], self.setting.sites[sae.name]
            found = jax.device_get(public(architecture, sae.architecture, sites, states[sae.name].parameters))
        return unscaled(found, self.scales[sae.name], self.scales[sae.name])

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

    def files(
        self, states: dict[str, TrainState], values: dict[str, Any], metrics: dict[str, Any] | None
    ) -> Iterator[tuple[str, Content]]:
        """The files of a checkpoint: the state, then those of each SAE, which are made when it is their turn."""
        yield from checkpoint.to_files(states, values).items()
        for sae in self.job.saes:
            found = artifacts.to_files(self.exported(sae, states), self.job, sae, self.provenance)
            if metrics is not None:
                found[artifacts.METRICS] = artifacts.as_json(metrics[sae.name])
            for name in sorted(found):
                yield f"saes/{sae.name}/{name}", found.pop(name)

    def publish(
        self, states: dict[str, TrainState], values: dict[str, Any], metrics: dict[str, Any] | None = None
    ) -> Checkpoint:
        """Writes the state and the SAEs under a key of their own, and reports them once they are complete.

        Args:
            metrics: the held-out metrics by SAE, which make it the final checkpoint.
        """
        n_steps = values["n_steps"]
        key = f"{self.prefix}/step-{n_steps:09d}-{uuid4().hex[:12]}"
        entries = self.storage.publish(key, self.files(states, values, metrics))
        tokens = n_steps * self.job.stream.batch
        written = Checkpoint(key, n_steps, tokens, metrics is not None, entries, metrics or {})
        self.reporter.checkpoint(written)
        return written
