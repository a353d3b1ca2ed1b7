"""The training loop over several SAEs that share one stream."""

import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sae_service import hosts
from sae_service.errors import NonFiniteLoss
from sae_service.sae.inference import InferenceSAE, SAEs, unscaled
from sae_service.sae.sites import Sites
from sae_service.schema import ResamplingConfig
from sae_service.spec import JobSpec, SAESpec
from sae_service.storage.checkpoint_writer import on_host, snapshot
from sae_service.training import memory, metrics, optimizer
from sae_service.training.cohort import Cohort, all_finite
from sae_service.training.grouping import groups
from sae_service.training.placement import Place, Placement
from sae_service.training.start import Scales, column_scales
from sae_service.training.states import States, Stepped
from sae_service.training.step import Numbers, Served, TrainState


def resampling_steps(job: JobSpec, sae: SAESpec) -> frozenset[int]:
    """The steps after which dead latents of `sae` are started anew; never the last, which would leave them untrained."""
    if not isinstance(sae.architecture, ResamplingConfig):
        return frozenset()
    steps = (optimizer.steps_of(duration, job.stream.n_steps) for duration in sae.architecture.resample_at)
    return frozenset(step for step in steps if step < job.stream.n_steps)


def schedule_warnings(job: JobSpec, sae: SAESpec) -> list[str]:
    """What a user should know of durations that do not fit the job's length."""
    found = optimizer.warm_up_warnings(sae.optimizer, job.stream.n_steps)
    if isinstance(sae.architecture, ResamplingConfig) and sae.architecture.resample_at and not resampling_steps(job, sae):
        found.append(
            f"architecture.resample_at has no step before the last of the job's {job.stream.n_steps}, so dead latents stay "
            "dead; give shares, such as [0.25, 0.5], or [] to leave it out"
        )
    return found


def numbers_of(job: JobSpec, sae: SAESpec, sites: Sites, scales: Scales) -> Numbers:
    """The traced numbers of one SAE of a job."""
    config = sae.architecture
    warms_up_again = isinstance(config, ResamplingConfig) and config.lr_warm_up_again
    again = tuple(sorted(resampling_steps(job, sae))) if warms_up_again else ()
    read_scale, write_scale = column_scales(sites, scales)
    found: Any = {name: np.float32(value) for name, value in config.numbers().items()}
    dead_after: Any = np.int32(job.dead_after_tokens(sae))
    schedule = optimizer.schedule(sae.optimizer, job.stream.n_steps, again)
    return Numbers(found, schedule, jnp.asarray(read_scale), jnp.asarray(write_scale), dead_after)


@dataclass(frozen=True)
class Member:
    """One SAE of a job in training: what it is, its cohort, where it lives, and its numbers there."""

    spec: SAESpec
    cohort: Cohort
    place: Place
    numbers: Numbers
    resampled_at: frozenset[int]


Evaluate = Callable[[SAEs], dict[str, Any]]
"""What measures SAEs on held-out rows; raises Stopped."""


@dataclass
class Trainer:
    """The states of all SAEs of a job, the steps on them, and the looks at them.

    Attributes:
        states: by SAE. A dictionary that is given is emptied.
        held_out: the held-out figures of each SAE as it is now, by name; empty unless a look has measured them.
        evaluate: what a look measures with.
        at_hand: batches of the current fill, for what is set by looking at many rows.
    """

    job: JobSpec
    sites: dict[str, Sites]
    states: MutableMapping[str, TrainState]
    scales: dict[str, Scales]
    placement: Placement
    report: Callable[[list[dict[str, Any]]], None]
    n_steps: int = 0
    observe: Callable[[InferenceSAE], dict[str, Any]] | None = None
    evaluate: Evaluate | None = None
    held_out: dict[str, Any] = field(default_factory=dict)
    at_hand: Callable[[], Iterable[dict[str, Array]]] = tuple
    _members: list[Member] = field(default_factory=list)
    _groups: list[Stepped] = field(default_factory=list)
    _started: tuple[float, int] | None = None
    _evaluated_s: float = 0.0
    _settled_at: int = 0

    def __post_init__(self) -> None:
        # A checkpoint holds what is settled; at the next position there are other rows at hand.
        self._settled_at = self.n_steps
        together = groups(self.job, self.sites, self.placement)
        of_sae = {name: group for group in together for name in group.names}
        for sae in self.job.saes:
            group, numbers = of_sae[sae.name], numbers_of(self.job, sae, self.sites[sae.name], self.scales[sae.name])
            there = group.place.put(numbers)
            self._members.append(Member(sae, group.cohort, group.place, there, resampling_steps(self.job, sae)))
        states = States(together, self.states, {member.spec.name: member.numbers for member in self._members})
        self.states, self._groups = states, states.groups

    def step(self, rows: dict[str, Float[Array, "batch d_in"]]) -> None:
        """One step of every SAE on the rows of its hook points."""
        here: dict[tuple[Sites, Place], Served] = {}
        for stepped in self._groups:
            group = stepped.group
            key = group.cohort.sites, group.place
            if key not in here:
                here[key] = group.cohort.served(rows, group.place)
            stepped.step(here[key])
        self.n_steps += 1
        self.held_out = {}
        for member in self._members:
            if self.n_steps in member.resampled_at:
                self._resample(member, here[member.cohort.sites, member.place])
        if self._started is None:
            jax.block_until_ready(self.states)
            # What compiling took.
            memory.give_back()
            self._started, self._evaluated_s = (time.monotonic(), self.n_steps), 0.0

    def look(self) -> None:
        """Reports what has happened since the last look, if it is time for metrics or for held-out figures.

        Raises Stopped before it has taken anything: a job that goes on from here looks again.
        """
        is_evaluated = self.evaluate is not None and self.job.is_evaluated_after(self.n_steps)
        is_last = self.n_steps == self.job.stream.n_steps
        if not (is_evaluated or is_last or self.n_steps % self.job.log_every == 0) or self._is_read():
            return
        if is_evaluated:
            self.held_out = self._measured()
        rows = [self._read(member) for member in self._members]
        self.report([row | ({"held_out": self.held_out[row["sae"]]} if is_evaluated else {}) for row in rows])

    def _is_read(self) -> bool:
        """Whether there has been no step since the last look, of whatever attempt."""
        return all(int(state.window.n_steps) == 0 for state in self.states.values())

    def _measured(self) -> dict[str, Any]:
        assert self.evaluate is not None
        self.settle()
        began, figures = time.monotonic(), self.figures()
        measured = self.evaluate({sae.name: partial(self._placed_now, sae) for sae in self.job.saes})
        self._evaluated_s += time.monotonic() - began
        return {name: found | figures[name] for name, found in measured.items()}

    def _placed_now(self, sae: SAESpec) -> InferenceSAE:
        """As it is now. The state of one in a group is a copy, so each is taken when it is its turn."""
        return self.placed(sae, {sae.name: self.states[sae.name].parameters})

    def exported(self, sae: SAESpec, parameters: Mapping[str, Any]) -> InferenceSAE:
        """The public form of one SAE, for raw activations, on the host: training may have filled the device.

        Args:
            parameters: of every SAE, by its name.
        """
        with on_host():
            member = next(member for member in self._members if member.spec is sae)
            found = jax.device_get(member.cohort.public(sae.architecture, hosts.fetched(parameters[sae.name])))
        return unscaled(found, self.scales[sae.name], self.scales[sae.name])

    def placed(self, sae: SAESpec, parameters: Mapping[str, Any]) -> InferenceSAE:
        """The same, and split over the devices of this host again if its latents are: one of them may have no room for it."""
        found, place = self.exported(sae, parameters), self.placement.by_sae[sae.name].here
        return place.put(found) if place.split == "d_sae" else found

    def figures(self) -> dict[str, dict[str, float]]:
        """What training knows of each SAE that is worth having beside its held-out figures."""
        return {sae.name: {"dead_share": self.dead_share(sae), "tokens_per_s": self.tokens_per_s()} for sae in self.job.saes}

    def _resample(self, member: Member, served: Served) -> None:
        sae = member.spec
        key: Any = jax.random.fold_in(jax.random.key(self.job.stream.seed), sae.seed)
        key = jax.random.fold_in(key, self.n_steps)
        self.states[sae.name] = member.cohort.resample(self.states[sae.name], member.numbers, served, key)

    def seconds(self) -> float:
        """Time since the first step of this attempt, without that of evaluations."""
        return 0.0 if self._started is None else time.monotonic() - self._started[0] - self._evaluated_s

    def tokens_per_s(self) -> float:
        """Trained tokens per second since the first step of this attempt."""
        if self._started is None or self.n_steps == self._started[1]:
            return 0.0
        return (self.n_steps - self._started[1]) * self.job.stream.batch / self.seconds()

    def dead_share(self, sae: SAESpec) -> float:
        """Share of the latents that have not fired for `dead_after_tokens`."""
        unseen = hosts.fetched(self.states[sae.name].tokens_since_fired)
        return float(np.mean(unseen > self.job.dead_after_tokens(sae)))

    def settle(self) -> None:
        """Makes the states ready to be saved or measured: thresholds are set on the rows at hand.

        Raises NonFiniteLoss if a loss since the last reading or a parameter is not finite, so that it is not saved.
        """
        for member in self._members if self._settled_at < self.n_steps else ():
            if member.cohort.architecture.calibration is not None:
                self._calibrate(member)
        self._settled_at = self.n_steps
        for name, state in self.states.items():
            metrics.read(state.window, self.n_steps)
            if not all_finite(state):
                raise NonFiniteLoss(f"the parameters of {name} became NaN or infinite in step {self.n_steps}.", hint=metrics.HINT)

    def _calibrate(self, member: Member) -> None:
        name = member.spec.name
        batches = [member.cohort.served(rows, member.place) for rows in self.at_hand()]
        self.states[name] = member.cohort.calibrated(member.spec.architecture, self.states[name], member.numbers, batches)

    def snapshot(self) -> dict[str, TrainState]:
        """A copy of each state in the host's memory, made one after the other."""
        return {name: snapshot(state) for name, state in self.states.items()}

    def let_go(self) -> None:
        """Frees the states and the rows at hand. Nothing is trained after it."""
        self.states.clear()
        self.at_hand = tuple

    def _read(self, member: Member) -> dict[str, Any]:
        sae = member.spec
        self.states[sae.name], on_device = member.cohort.read(sae.architecture, self.states[sae.name], member.numbers)
        found = hosts.fetched(on_device)
        unit = self.scales[sae.name][sae.writes[0]]
        observed = {}
        if self.observe is not None:
            observed = self.observe(member.cohort.public(sae.architecture, self.states[sae.name].parameters))
        return {
            "sae": sae.name,
            "step": self.n_steps,
            "tokens": self.n_steps * self.job.stream.batch,
            **metrics.read(found["window"], self.n_steps),
            **{name: float(found[name]) for name in ("dead_share", "learning_rate", "sparsity_scale")},
            "tokens_per_s": self.tokens_per_s(),
            "threshold_quantiles": [float(value) / unit for value in found["threshold_quantiles"]],
            **observed,
        }
