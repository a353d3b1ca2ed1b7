"""A job from its spec to its SAEs: the one place where stream, training, evaluation and storage meet."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import jax

from sae_service import errors, hosts, own_latents
from sae_service.activations.source import Source
from sae_service.activations.stream import ActivationStream, StreamPosition
from sae_service.analysis.course import State
from sae_service.analysis.look import Look
from sae_service.evaluation.held_out import HeldOut, Observe
from sae_service.evaluation.of_job import held_out_of
from sae_service.evaluation.score import score
from sae_service.hub import pinned
from sae_service.news import Checkpoint, Reporter, ends_here, stop_if_asked
from sae_service.readable import EVERYWHERE, Roots
from sae_service.sae.inference import SAEs
from sae_service.schema import SAES
from sae_service.setting import Setting
from sae_service.spec import JobSpec, LatentsPart, SAESpec
from sae_service.storage import artifacts, checkpoint
from sae_service.storage.cache import ActivationCache
from sae_service.storage.checkpoint_writer import CheckpointWriter
from sae_service.storage.objects import Content, Storage
from sae_service.storage.provenance import provenance
from sae_service.surroundings import Surroundings
from sae_service.training import grouping, memory, precision, start
from sae_service.training.loop import Trainer, schedule_warnings
from sae_service.training.placement import placement, shortage
from sae_service.training.step import TrainState


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
    roots: Roots = EVERYWHERE,
    cache: ActivationCache | None = None,
) -> Checkpoint | None:
    """Trains and evaluates the SAEs of a job, and looks at their latents if it says so. Returns the final checkpoint, or None if
    it was asked to stop and has published a checkpoint of where it is. The arguments are those of `Surroundings`.
    """
    return train(job, Surroundings(storage, prefix, reporter, should_stop, resume_from, begin_with, device, alive, roots, cache))


def train(job: JobSpec, around: Surroundings) -> Checkpoint | None:
    """The same, where the surroundings are given as one."""
    job = job.model_copy(update={"stream": pinned(job.stream, hosts.agreed)})
    reporter = around.reporter
    with ExitStack() as ending:
        meeting = ending.enter_context(hosts.Meeting())
        source = Source(job, around.device, around.roots)
        ending.callback(source.close, reporter.event)
        of_schedules = (f"saes[{index}].{text}" for index, sae in enumerate(job.saes) for text in schedule_warnings(job, sae))
        products = precision.of_job(job, None if source.model is None else source.model.precisions)
        reporter.event("info", precision.said(products))
        setting = Setting(job, source, placement(job), products)
        of_devices = *precision.warnings(job, products), *shortage(job, setting.placement)
        for warning in (*source.model_warnings, *of_schedules, *of_devices):
            around.warn(warning)
        reporter.event("info", grouping.said(grouping.groups(job, setting.sites, setting.placement)))
        setting.check_memory(reporter)
        stops = partial(ends_here, hosts.if_alone(around.should_stop), around.alive)
        try:
            # Before anything is computed: what is wrong with the held-out text is said at once.
            held_out = held_out_of(job, source.model, stops, reporter.event)
            source.open_cache(around.cache, stops)
            found = checkpoint.restored(around.storage, around.resume_from, around.begin_with, setting.shapes, around.warn)
            states, values = found or ({}, {"position": {}, "n_steps": 0, "scales": {}})
            training = _Training(setting, around, states, values, *held_out)
            ending.callback(training.writer.close)
            meeting.hold(values)
            training.start_reading(ending)
            return training.finish() if training.train() else None
        except errors.Stopped:
            return None


class _Training:
    """The moving parts of one attempt at a job."""

    def __init__(
        self, setting: Setting, around: Surroundings, states: dict[str, Any], values: dict[str, Any], held_out: HeldOut,
        observe: Observe | None,
    ) -> None:  # fmt: skip
        self.setting, self.job, self.source = setting, setting.job, setting.source
        self.held_out, self.observe = held_out, observe
        self.around, self.reporter = around, around.reporter
        self.begun = own_latents.taken_out(self.job, states, values)
        self.position = StreamPosition.model_validate(values["position"])
        self.states, self.scales, self.n_steps = states, values["scales"], values["n_steps"]
        self.saved = (self.n_steps, False)  # the steps of the last checkpoint, and whether it has held-out figures
        self.trainer: Trainer | None = None
        self.should_stop, self.alive, self.writer = around.should_stop, around.alive, CheckpointWriter()
        self.ends_here = partial(ends_here, hosts.any_of(self.should_stop), self.alive)  # a sign of life, and whether to stop
        self.stops_here = hosts.any_of(self.should_stop, hosts.STEPS_BETWEEN)
        self.is_due = hosts.of_leader(self.writer.is_due, hosts.STEPS_BETWEEN)
        self.initial = {} if self.n_steps else start.load_all(self.job, self.source.widths, self.source.roots)
        self.hashes = values.get("initial", {}) | {name: found.sha256 for name, found in self.initial.items()}
        made_by = jax.devices()[0].device_kind, self.source.roots, setting.products
        self.provenance = provenance(self.job.model_dump(mode="json"), self.job.stream, *made_by) | {"initial": self.hashes}
        self.limits: dict[str, float] = values.get("limits") or {}

    def start_reading(self, ending: ExitStack) -> None:
        """Starts the stream, which has a thread that the end stops."""
        self.limits = self.limits or hosts.agreed(partial(self.source.norm_limits, self.alive))
        harvest = self.source.harvest(self.position.fill_start, self.limits)
        self.stream = ActivationStream(self.job.stream, harvest, self.position, self.alive, self.source.row_bytes)
        ending.callback(self.stop_reading)

    def train(self) -> bool:
        """Trains to the end, or until it should stop, and saves that. Returns whether the end was reached."""
        try:
            self.steps()
        except errors.Stopped:
            self.save_and_wait()
            return False
        # A checkpoint of the last step has only the evaluation before it.
        self.trainer = self.trainer or self.begin({})
        return True

    def steps(self) -> None:
        """All steps that are left. Raises Stopped."""
        for fill in hosts.until_any_stops(self.stream.fills(self.should_stop), self.should_stop):
            hosts.check_rows(fill.rows, self.source.tolerance)
            self.source.tell(self.reporter.event)
            if self.trainer is None:
                self.trainer = self.begin(fill.rows)
                # An attempt may have been stopped as it measured the SAEs.
                self.look()
            self.trainer.at_hand = partial(self.stream.sample, fill)  # lets go of the fill before
            memory.give_back()
            for batch, position in self.stream.batches(fill):
                if self.stops_here():
                    raise errors.Stopped
                self.writer.check()
                self.trainer.step(batch)
                self.alive()
                self.position = position
                self.look()
            jax.block_until_ready(self.trainer.states)  # or the wait for rows would have steps in it
        if (self.trainer.n_steps if self.trainer else self.n_steps) < self.job.stream.n_steps:
            raise errors.Stopped

    def look(self) -> None:
        """Reports and saves what it is time for. Raises Stopped."""
        assert self.trainer is not None
        with hosts.saved_if_it_fails(self.save_and_wait):  # what has been trained is not lost with its evaluation
            self.trainer.look()
        n_steps, every = self.trainer.n_steps, self.job.checkpoint_every_steps
        is_due = self.is_due() if every is None else n_steps % every == 0
        if n_steps < self.job.stream.n_steps and (is_due or self.trainer.held_out):
            self.save()

    def begin(self, rows: dict[str, Any]) -> Trainer:
        """The trainer, fitted to the first fill, which is complete before its first row is served: that uses up none."""
        if self.n_steps == 0:
            self.scales = hosts.agreed(partial(start.measured_scales, self.job, rows))
            self.states = {sae.name: self.started(sae, rows) for sae in self.job.saes}
        evaluate = partial(self.held_out.evaluate, should_stop=self.ends_here)
        where = self.setting.sites, self.states, self.scales, self.setting.placement
        return Trainer(self.job, *where, self.reporter.metrics, self.n_steps, self.observe, evaluate)

    def started(self, sae: SAESpec, rows: dict[str, Any]) -> TrainState:
        """The state of one SAE before its first step: what it is to start from, or else drawn and fitted to the rows."""
        sites, scales, places = self.setting.sites[sae.name], self.scales[sae.name], self.setting.placement
        if sae.name in self.initial:
            return start.from_weights(sae, sites, scales, self.initial.pop(sae.name), places)
        return start.drawn_and_fitted(self.job, sae, sites, scales, rows, places)

    def finish(self) -> Checkpoint:
        """Evaluates the SAEs, looks at their latents if the job says so, publishes the final checkpoint. Raises Stopped."""
        assert self.trainer is not None
        self.trainer.settle()
        trained_s, figures, values = self.trainer.seconds(), self.trainer.figures(), self.values()
        self.writer.finish()  # before there is another copy of the states
        state = self.trainer.snapshot()
        # From here on the device is the evaluation's.
        self.stop_reading()
        for warning in self.source.warnings():
            self.around.warn(warning)
        self.trainer.let_go()
        memory.give_back()
        parameters = {name: found.parameters for name, found in state.items()}
        saes = {sae.name: partial(self.trainer.placed, sae, parameters) for sae in self.job.saes}
        measured = self.measured(saes, figures, state, values) if self.begun is None else self.begun.measured
        for waited in (self.stream.waits.said(trained_s), *self.writer.said(trained_s)):
            self.reporter.event("info", waited)
        if self.job.latents is None:
            return self.publish(state, values, measured, is_final=True)
        return self.look_at_latents(self.job.latents, saes, state, values, measured)

    def measured(
        self, saes: SAEs, figures: Mapping[str, Any], state: dict[str, TrainState], values: dict[str, Any]
    ) -> dict[str, Any]:
        """The figures of the SAEs, with those of held-out text. Raises Stopped."""
        with ExitStack() as failed:
            # What has been trained is not lost with its evaluation.
            if values["n_steps"] > self.saved[0]:
                failed.callback(self.publish, state, values, {})
            self.reporter.event("info", "Measuring on held-out text.")
            found = self.held_out.evaluate(saes, self.ends_here)
            failed.pop_all()
        return {name: measured | figures[name] for name, measured in found.items()}

    def look_at_latents(
        self, part: LatentsPart, saes: SAEs, state: dict[str, TrainState], values: dict[str, Any], measured: dict[str, Any]
    ) -> Checkpoint:
        """Looks at the latents of the SAEs, and publishes the final checkpoint with what is seen. Raises Stopped."""
        assert self.source.model is not None, "synthetic rows have no text"
        at_hand = {name: load() for name, load in saes.items()}
        look = Look(self.job.stream, part, self.source.model, at_hand, self.limits, self.source.roots)

        def publish_state(seen: State, n_batches: int, _: int) -> None:
            begun = own_latents.Begun(seen, measured)
            self.publish(*own_latents.put_in(self.job, state, values, begun), measured, n_batches=n_batches)

        course = own_latents.course(self.job, look, self.around, self.writer, publish_state, self.begun)
        course.save()  # a kill from here on takes no step of training and no figure with it
        # Only one of several hosts writes files, so none of them asks the others meanwhile.
        stops = partial(stop_if_asked, hosts.if_alone(self.should_stop), self.alive)
        return course.to_end(lambda: self.publish(state, values, measured, look.files(stops), is_final=True))

    def stop_reading(self) -> None:
        """Ends the stream, and what it adds to the activation cache."""
        self.stream.close()
        self.source.close(self.reporter.event)

    def values(self) -> dict[str, Any]:
        """What a checkpoint holds beside the arrays."""
        assert self.trainer is not None
        return {
            "position": self.position.model_dump(mode="json"), "n_steps": self.trainer.n_steps, "scales": self.scales,
            "limits": self.limits, "initial": self.hashes,
        }  # fmt: skip

    def save(self) -> None:
        """Publishes a checkpoint while training goes on, if the last one does not have it all."""
        if self.trainer is not None and self.saved < (now := (self.trainer.n_steps, bool(self.trainer.held_out))):
            self.saved = now
            # The steps that are still being computed are no cost of the checkpoint.
            jax.block_until_ready(self.trainer.states)
            self.writer.write(self.prepare)

    def save_and_wait(self) -> None:
        """Publishes a checkpoint, if the last one does not have it all, and waits for it."""
        self.save()
        self.writer.finish()

    def prepare(self) -> Callable[[], Checkpoint]:
        """Copies what a checkpoint needs. Returns what is left to do: to publish it."""
        assert self.trainer is not None
        self.trainer.settle()
        return partial(self.publish, self.trainer.snapshot(), self.values(), self.trainer.held_out)

    def files(
        self, states: dict[str, Any], values: dict[str, Any], metrics: dict[str, Any], looked: Iterable[tuple[str, Content]]
    ) -> Iterator[tuple[str, Content]]:
        """The files of a checkpoint: what a look has found, the state, then those of each SAE, made when it is their turn.

        `states` is consumed, once the look's files are there.
        """
        assert self.trainer is not None
        yield from looked
        yield from checkpoint.to_files(states, values).items()
        parameters = {sae.name: states[sae.name].parameters for sae in self.job.saes}
        states.clear()
        for sae in self.job.saes:
            found = artifacts.to_files(self.trainer.exported(sae, parameters), self.job, sae, self.provenance)
            if metrics:
                found[artifacts.METRICS] = artifacts.as_json(metrics[sae.name])
            for name in sorted(found):
                yield f"{SAES}{sae.name}/{name}", found.pop(name)

    def publish(
        self, states: dict[str, Any], values: dict[str, Any], metrics: dict[str, Any],
        looked: Iterable[tuple[str, Content]] = (), n_batches: int = 0, is_final: bool = False,
    ) -> Checkpoint:  # fmt: skip
        """Writes the state and the SAEs, and reports them once they are complete; one host does.

        Args:
            states: on the host; consumed.
            looked: files of a look at latents.
            n_batches: of text in which latents have been looked at since the last step of training.
        """
        n_steps = values["n_steps"]
        files, tokens = self.files(states, values, metrics, looked), n_steps * self.job.stream.batch
        return self.around.publish(files, n_steps + n_batches, tokens, metrics, is_final, score(self.job, n_steps, metrics))
