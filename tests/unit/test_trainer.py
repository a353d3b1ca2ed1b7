"""The training loop over several SAEs: what it reports, when it resamples, and that neither logging nor a stop matters."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from sae_service.architectures import ARCHITECTURES, p_annealing
from sae_service.errors import NonFiniteLoss
from sae_service.kernels.dense import DENSE
from sae_service.sae.architecture import LossContext
from sae_service.sae.coder import Coder, centred_bias
from sae_service.sae.sites import at
from sae_service.schema import OptimizerConfig
from sae_service.spec import JobSpec
from sae_service.storage import checkpoint
from sae_service.storage.objects import Parts, Storage
from sae_service.training import start
from sae_service.training.loop import Trainer, resampling_steps, schedule_warnings
from sae_service.training.optimizer import steps_of
from sae_service.training.placement import placement
from sae_service.training.step import TrainState
from tests.planted import BATCH, D_IN, planted_rows, same

ROW = {"sae", "step", "tokens", "loss", "l0", "fvu", "grad_norm", "dead_share", "learning_rate", "sparsity_scale",
       "tokens_per_s", "threshold_quantiles"}  # fmt: skip
HOOK = "hook_synthetic"
SITES = at(HOOK, D_IN)
OPTIMIZER = {"lr": 3e-3, "lr_warm_up": 5, "lr_decay": 0, "sparsity_warm_up": 0}


def job(architectures: list[dict[str, Any]], n_steps: int, **changes: Any) -> JobSpec:
    return JobSpec.model_validate({
        "stream": {"synthetic": {"n_features": 24, "d_in": D_IN}, "tokens": n_steps * BATCH, "batch": BATCH},
        "saes": [
            {"name": item["kind"], "hook_name": HOOK, "architecture": item, "optimizer": OPTIMIZER,
             "dead_after_tokens": 2 * BATCH} for item in architectures
        ],
        "log_every": 1000,
    } | changes)  # fmt: skip


def every_kind() -> list[dict[str, Any]]:
    return [architecture.example.model_dump() for architecture in ARCHITECTURES.values()]


def begun(spec: JobSpec, rows: jax.Array, scale: float = 1.0) -> dict[str, TrainState]:
    """The states of all SAEs before the first step, fitted to rows."""
    return {
        sae.name: start.drawn_and_fitted(spec, sae, SITES, {HOOK: scale}, {HOOK: rows}, placement(spec)) for sae in spec.saes
    }


def trainer(
    spec: JobSpec, rows: list[dict[str, Any]], state: dict[str, Any] | None = None, n_steps: int = 0, scale: float = 1.0
) -> Trainer:
    states = state or begun(spec, planted_rows(1000), scale)
    sites, scales = {sae.name: SITES for sae in spec.saes}, {sae.name: {HOOK: scale} for sae in spec.saes}
    return Trainer(spec, sites, states, scales, placement(spec), rows.extend, n_steps)


def train(training: Trainer, until: int) -> bytes:
    """Steps until `until`; returns the parameters as bytes."""
    while training.n_steps < until:
        training.step({HOOK: planted_rows(BATCH, seed=training.n_steps)})
        training.look()
    files = checkpoint.to_files({name: state.parameters for name, state in training.states.items()}, {})
    arrays = files[checkpoint.ARRAYS]
    assert isinstance(arrays, Parts)
    return b"".join(arrays.parts())


def test_logging_changes_no_architecture() -> None:
    seldom: list[dict[str, Any]] = []
    always: list[dict[str, Any]] = []
    quiet = train(trainer(job(every_kind(), 3), seldom), 3)
    assert train(trainer(job(every_kind(), 3, log_every=1), always), 3) == quiet
    assert len(always) == 3 * len(seldom) == 3 * len(ARCHITECTURES)
    for row in always:
        terms = row.keys() - ROW
        assert row.keys() >= ROW
        assert sum(row[term] for term in terms) == pytest.approx(row["loss"], rel=1e-4)
        assert len(row["threshold_quantiles"]) == 5


def test_thresholds_are_reported_in_the_units_in_which_they_are_exported() -> None:
    rows: list[dict[str, Any]] = []
    spec = job([{"kind": "jumprelu", "d_sae": 64, "initial_threshold": 0.1}], 1)
    training = trainer(spec, rows, scale=0.05)
    training.step({HOOK: 20 * planted_rows(BATCH)})
    training.look()
    threshold = float(np.median(np.asarray(training.states["jumprelu"].parameters.threshold)))
    # Decoder rows begin at norm 0.5.
    assert rows[-1]["threshold_quantiles"][2] == pytest.approx(threshold * 0.5 / 0.05, rel=0.05)


RESAMPLED = [
    {"kind": "gated", "d_sae": 64, "resample_at": [7, 14]},
    {"kind": "standard_tied", "d_sae": 64, "resample_at": [7, 14]},
]


def with_dead_latents(spec: JobSpec) -> dict[str, Any]:
    """Initial states, one in three of whose latents never fires."""
    states = begun(spec, planted_rows(1000))
    gated, tied = states["gated"].parameters, states["standard_tied"].parameters
    return {
        "gated": states["gated"].replace(parameters=gated.replace(coder=silenced(gated.coder))),
        "standard_tied": states["standard_tied"].replace(parameters=silenced(tied)),
    }


def silenced(coder: Coder) -> Coder:
    return coder.replace(b_enc=coder.b_enc.at[::3].set(-50))


def test_a_stop_between_resamplings_changes_nothing_and_the_learning_rate_warms_up_again(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    spec = job(RESAMPLED, 20, log_every=1)
    whole = trainer(spec, rows, with_dead_latents(spec))
    expected = train(whole, 20)
    first = trainer(spec, [], with_dead_latents(spec))
    train(first, 9)  # in the middle of a warm-up
    like = {sae.name: start.shapes(sae, SITES) for sae in spec.saes}
    storage = Storage(tmp_path.as_uri())
    storage.publish("first", checkpoint.to_files(first.snapshot(), {}))
    states, _ = checkpoint.read(storage, "first", like)
    assert train(trainer(spec, [], states, n_steps=9), 20) == expected

    rates = {name: [row["learning_rate"] for row in rows if row["sae"] == name] for name in ("gated", "standard_tied")}
    again = [step / 5 for step in range(1, 6)]
    assert jnp.allclose(jnp.array(rates["standard_tied"]) / 3e-3, jnp.array(again + [1] * 15))
    gated = np.array(rates["gated"])
    np.testing.assert_allclose(gated[7:14], gated[:7])
    np.testing.assert_allclose(gated[14:], gated[:6])
    assert gated[7] < gated[6]
    dead = [row["dead_share"] for row in rows if row["sae"] == "gated"]
    assert dead[5] > 0.3
    assert dead[6] == 0, "resampling after step 7 has started all of them anew"


def test_latents_are_not_started_anew_by_the_last_step_which_would_leave_them_untrained() -> None:
    architecture = {"kind": "gated", "d_sae": 64, "resample_at": [7, 0.75, 20, 1.0, 30]}
    spec = job([architecture], 20)
    assert resampling_steps(spec, spec.saes[0]) == {7, 15}


def test_the_rows_that_a_threshold_is_set_on_are_gathered_once() -> None:
    training, gathered = trainer(job([{"kind": "batchtopk", "d_sae": 64, "k": 4}], 2), []), list[int]()

    def at_hand() -> Iterator[dict[str, Any]]:
        for seed in range(3):
            gathered.append(seed)
            yield {HOOK: planted_rows(BATCH, seed)}

    training.at_hand = at_hand
    train(training, 2)
    training.settle()
    assert gathered == [0, 1, 2]


def test_whoever_asks_for_resampling_that_a_short_job_never_reaches_is_told() -> None:
    spec = job([{"kind": "gated", "d_sae": 64}, {"kind": "standard_tied", "d_sae": 64, "resample_at": [0.5]}], 20)
    (warning,) = schedule_warnings(spec, spec.saes[0])
    assert "architecture.resample_at has no step before the last of the job's 20" in warning
    assert schedule_warnings(spec, spec.saes[1]) == []


def test_one_with_a_point_is_the_whole_job_and_without_it_a_step() -> None:
    for given, steps in (("1", 1), ("1.0", 400), ("0.5", 200), ("0", 0), ("0.0", 0)):
        read = OptimizerConfig.model_validate_json(f'{{"lr": 1, "sparsity_warm_up": {given}}}')
        again = OptimizerConfig.model_validate_json(read.model_dump_json())
        assert steps_of(read.sparsity_warm_up, 400) == steps_of(again.sparsity_warm_up, 400) == steps
    with pytest.raises(ValidationError):
        OptimizerConfig.model_validate({"lr": 1, "sparsity_warm_up": 1.5})


def test_an_sae_is_fitted_to_rows_from_all_of_a_fill() -> None:
    spec = job([ARCHITECTURES["topk"].example.model_dump()], 4)
    halves = jnp.concatenate([jnp.zeros((40_000, D_IN)), jnp.ones((60_000, D_IN))])
    np.testing.assert_allclose(begun(spec, halves)["topk"].parameters.b_dec, 1, atol=1e-3)


def test_parameters_that_overflow_are_never_saved() -> None:
    spec = job([{"kind": "standard", "d_sae": 64}], 4)
    spec = spec.model_copy(update={"saes": tuple(
        sae.model_copy(update={"optimizer": sae.optimizer.model_copy(update={"lr": 3e38, "lr_warm_up": 0})}) for sae in spec.saes
    )})  # fmt: skip
    training = trainer(spec, [])
    training.step({HOOK: 100 * planted_rows(BATCH)})
    training.states["standard"] = training.states["standard"].replace(
        parameters=jax.tree.map(lambda leaf: leaf * 10, training.states["standard"].parameters)
    )
    with pytest.raises(NonFiniteLoss, match="parameters of standard"):
        training.settle()


@pytest.mark.parametrize(("normalization", "expected"), [("unit_mean_square", 1.0), ("sqrt_d_in", 4.0), ("none", None)])
def test_one_scalar_normalises_the_rows(normalization: str, expected: float | None) -> None:
    architecture = {"kind": "topk", "d_sae": 64, "k": 4}
    sae = {"hook_name": HOOK, "architecture": architecture, "normalization": normalization}
    x = 7 * planted_rows(1000)
    scale = start.measured_scales(job([architecture], 4, saes=[sae]), {HOOK: x})["topk_64"][HOOK]
    norms = jnp.linalg.norm(x * scale, axis=1)
    match normalization:
        case "unit_mean_square":
            assert float(jnp.mean(norms**2)) == pytest.approx(expected)
        case "sqrt_d_in":
            assert float(jnp.mean(norms)) == pytest.approx(expected)
        case _:
            assert scale == 1


def test_p_falls_in_ten_steps_and_each_keeps_the_penalty_what_it_was() -> None:
    config = p_annealing.PAnnealingConfig(d_sae=64, lp_coefficient=1.0, p_end=0.2, anneal_start=0.0)
    parameters, rows, sparsity = p_annealing.init(config, SITES, jax.random.key(0)), same(planted_rows(BATCH)), []
    measure = jax.jit(p_annealing.loss, static_argnums=(0, 4))
    for step in range(220):
        context = LossContext(jnp.ones(()), jnp.zeros(64, bool), jnp.array(step / 220))
        output, parameters = measure(config, parameters, rows, context, DENSE)
        sparsity.append(float(output.terms["sparsity"]))
    assert float(parameters.falls) == 10
    # The rows and the encoder stand still here: a falling p must not change the term at all.
    np.testing.assert_allclose(sparsity, sparsity[0], rtol=1e-3)
    acts = jax.nn.relu(rows.x @ parameters.coder.W_enc + centred_bias(parameters.coder))
    unscaled = p_annealing.power_penalty(acts, jnp.array(0.2))
    assert float(parameters.factor * unscaled) == pytest.approx(sparsity[0], rel=1e-3)
    assert float(parameters.factor) != pytest.approx(1, abs=0.1)
    # The job is extended to twice its length: what has been reached stays.
    for step in range(220, 440):
        context = LossContext(jnp.ones(()), jnp.zeros(64, bool), jnp.array(step / 440))
        output, parameters = measure(config, parameters, rows, context, DENSE)
        assert float(output.terms["sparsity"]) == pytest.approx(sparsity[0], rel=1e-3)
    assert float(parameters.falls) == 10
