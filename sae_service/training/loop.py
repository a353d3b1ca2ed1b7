"""The training loop over several SAEs that share one stream."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sae_service.architectures import ARCHITECTURES
from sae_service.errors import NonFiniteLoss
from sae_service.numerics import spread
from sae_service.sae.inference import InferenceSAE, unscaled
from sae_service.schema import ResamplingConfig
from sae_service.spec import JobSpec, SAESpec
from sae_service.training import metrics, optimizer
from sae_service.training.step import Numbers, TrainState, init_state, resample_step, train_step

SAMPLE_ROWS = 32_768
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def initial_state(job: JobSpec, sae: SAESpec, d_in: int) -> TrainState:
    """The state of one SAE before its first step; its key depends on the job's and the SAE's seed."""
    key: Any = jax.random.fold_in(jax.random.key(job.stream.seed), sae.seed)
    return init_state(ARCHITECTURES[sae.architecture.kind], sae.architecture, d_in, key)


def fitted(state: TrainState, sae: SAESpec, scale: float, rows: Float[Array, "rows d_in"]) -> TrainState:
    """The initial state fitted to a sample of the rows that it will see, as its architecture wants it."""
    sample = spread(rows, SAMPLE_ROWS).astype(jnp.float32) * scale
    parameters = ARCHITECTURES[sae.architecture.kind].fit_to_rows(sae.architecture, state.parameters, sample)
    return state.replace(parameters=parameters)


def continued(state: TrainState, parameters: Any) -> TrainState:
    """The initial state with parameters that were trained before, each in a buffer of its own: a step consumes them."""
    copied = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), parameters)
    return state.replace(parameters=copied)


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


def activation_scale(sae: SAESpec, rows: Float[Array, "rows d_in"]) -> float:
    """The scalar that normalises rows like these, by the SAE's convention."""
    squares = jnp.sum(jnp.square(rows.astype(jnp.float32)), axis=1)
    match sae.normalization:
        case "unit_mean_square":
            return float(1 / jnp.sqrt(jnp.mean(squares)))
        case "sqrt_d_in":
            return float(jnp.sqrt(rows.shape[1]) / jnp.mean(jnp.sqrt(squares)))
        case _:
            return 1.0


@dataclass
class Trainer:
    """The states of all SAEs of a job, and the steps on them."""

    job: JobSpec
    states: dict[str, TrainState]
    scales: dict[str, float]
    report: Callable[[list[dict[str, Any]]], None]
    n_steps: int = 0
    observe: Callable[[InferenceSAE], dict[str, Any]] = lambda sae: {}
    _numbers: dict[str, Numbers] = field(default_factory=dict)
    _resampling: dict[str, frozenset[int]] = field(default_factory=dict)
    _devices: dict[str, Any] = field(default_factory=dict)
    _started: tuple[float, int] | None = None

    def __post_init__(self) -> None:
        devices = jax.devices()[: self.job.gpus]
        for index, sae in enumerate(self.job.saes):
            self._devices[sae.name] = devices[index % len(devices)]
            if len(devices) > 1:
                self.states[sae.name] = jax.device_put(self.states[sae.name], self._devices[sae.name])
            self._resampling[sae.name] = resampling_steps(self.job, sae)
            self._numbers[sae.name] = Numbers(
                architecture={name: jnp.float32(value) for name, value in sae.architecture.numbers().items()},
                schedule=optimizer.schedule(sae.optimizer, self.job.stream.n_steps),
                activation_scale=jnp.float32(self.scales[sae.name]),
                dead_after_tokens=jnp.int32(self.job.dead_after_tokens(sae)),
            )
            self._warm_up_again(sae)

    def step(self, rows: dict[str, Float[Array, "batch d_in"]]) -> None:
        """One step of every SAE on its hook point's rows; reports metrics every `log_every` steps."""
        seen: dict[tuple[str, Any], Array] = {}
        for sae in self.job.saes:
            if self.n_steps in self._resampling[sae.name]:
                self._warm_up_again(sae)
            here = sae.hook_name, self._devices[sae.name]
            if here not in seen:
                seen[here] = rows[sae.hook_name] if self.job.gpus == 1 else jax.device_put(rows[sae.hook_name], here[1])
            self.states[sae.name] = train_step(
                ARCHITECTURES[sae.architecture.kind],
                sae.architecture.structure(),
                self.states[sae.name],
                self._numbers[sae.name],
                seen[here],
            )
        self.n_steps += 1
        for sae in self.job.saes:
            if self.n_steps in self._resampling[sae.name]:
                self._resample(sae, seen[sae.hook_name, self._devices[sae.name]])
        if self._started is None:
            jax.block_until_ready(self.states)
            self._started = time.monotonic(), self.n_steps
        if self.n_steps % self.job.log_every == 0 or self.n_steps == self.job.stream.n_steps:
            self.report([self._read(sae) for sae in self.job.saes])

    def _resample(self, sae: SAESpec, rows: Float[Array, "batch d_in"]) -> None:
        key: Any = jax.random.fold_in(jax.random.key(self.job.stream.seed), sae.seed)
        self.states[sae.name] = resample_step(
            ARCHITECTURES[sae.architecture.kind],
            sae.architecture.structure(),
            self.states[sae.name],
            self._numbers[sae.name],
            rows,
            jax.random.fold_in(key, self.n_steps),
        )

    def seconds(self) -> float:
        """Time since the first step of this attempt."""
        return 0.0 if self._started is None else time.monotonic() - self._started[0]

    def _warm_up_again(self, sae: SAESpec) -> None:
        """Lets the learning rate warm up from the last resampling, if it is to: the number of steps alone decides."""
        if not isinstance(sae.architecture, ResamplingConfig) or not sae.architecture.lr_warm_up_again:
            return
        last = max((step for step in self._resampling[sae.name] if step <= self.n_steps), default=0)
        numbers = self._numbers[sae.name]
        schedule = numbers.schedule.replace(lr_warm_up_from=jnp.float32(last))
        self._numbers[sae.name] = numbers.replace(schedule=schedule)

    def tokens_per_s(self) -> float:
        """Trained tokens per second since the first step of this attempt."""
        if self._started is None or self.n_steps == self._started[1]:
            return 0.0
        return (self.n_steps - self._started[1]) * self.job.stream.batch / self.seconds()

    def dead_share(self, sae: SAESpec) -> float:
        """Share of the latents that have not fired for `dead_after_tokens`."""
        return float(jnp.mean(self.states[sae.name].tokens_since_fired > self.job.dead_after_tokens(sae)))

    def check(self) -> None:
        """Raises NonFiniteLoss if a loss since the last reading or a parameter is not finite, so that it is not saved."""
        for name, state in self.states.items():
            metrics.read(state.window, self.n_steps)
            if not all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(state.parameters)):
                raise NonFiniteLoss(f"the parameters of {name} became NaN or infinite in step {self.n_steps}.", hint=metrics.HINT)

    def _read(self, sae: SAESpec) -> dict[str, Any]:
        state, numbers = self.states[sae.name], self._numbers[sae.name]
        row = metrics.read(state.window, self.n_steps)
        last = state.n_steps - 1
        emptied = metrics.empty(tuple(state.window.terms), len(state.window.rows))
        self.states[sae.name] = state.replace(window=emptied)
        exported = ARCHITECTURES[sae.architecture.kind].export(sae.architecture, state.parameters)
        threshold = unscaled(exported, self.scales[sae.name]).threshold
        return {
            "sae": sae.name,
            "step": self.n_steps,
            "tokens": self.n_steps * self.job.stream.batch,
            **row,
            "dead_share": self.dead_share(sae),
            "learning_rate": float(optimizer.learning_rate(numbers.schedule, last)),
            "sparsity_scale": float(optimizer.sparsity_scale(numbers.schedule, last)),
            "tokens_per_s": self.tokens_per_s(),
            "threshold_quantiles": [float(value) for value in jnp.quantile(threshold, jnp.array(QUANTILES))],
            **self.observe(exported),
        }
