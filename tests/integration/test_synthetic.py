"""Activations with known features: what the generator promises, and that SAEs find the features."""

from typing import Any

import jax
import numpy as np
import pytest
from pydantic import ValidationError

from sae_service import pipeline
from sae_service.activations import synthetic
from sae_service.activations.buffer import FillStart
from sae_service.architectures import ARCHITECTURES
from sae_service.evaluation import feature_recovery
from sae_service.sae.sites import at
from sae_service.spec import JobSpec, StreamSpec, SyntheticSpec
from sae_service.storage.objects import Storage
from sae_service.training import start
from sae_service.training.placement import placement
from tests.recorder import Recorder


def stream(**changes: Any) -> StreamSpec:
    spec = {"n_features": 64, "d_in": 32} | changes
    return StreamSpec.model_validate({"synthetic": spec, "tokens": 1000, "batch": 100})


def drawn(**changes: Any) -> np.ndarray[Any, Any]:
    spec = SyntheticSpec.model_validate({"n_features": 13, "d_in": 8} | changes)
    probabilities = synthetic.truth(spec, seed=0).probabilities
    return np.asarray(synthetic.strengths(spec, probabilities, jax.random.key(0), 40_000))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_sae_begins_with_the_features_that_it_is_to_find(seed: int) -> None:
    saes = [
        {"name": kind, "hook_name": "hook_synthetic", "seed": seed, "architecture": {"kind": kind, "d_sae": 64}}
        for kind in ARCHITECTURES
    ]
    job = JobSpec.model_validate({"stream": stream().model_dump(), "saes": saes})
    assert job.stream.synthetic is not None
    directions = np.asarray(synthetic.truth(job.stream.synthetic, job.stream.seed).directions)
    random = feature_recovery.control(directions, 64)["mmcs_truth_to_learned"]
    sites, rows = at("hook_synthetic", 32), {"hook_synthetic": jax.random.normal(jax.random.key(0), (256, 32))}
    for sae in job.saes:
        state = start.drawn_and_fitted(job, sae, sites, {"hook_synthetic": 1.0}, rows, placement(job))
        exported = ARCHITECTURES[sae.architecture.kind].export(sae.architecture, state.parameters)
        found = feature_recovery.similarity(directions, np.asarray(exported.W_dec))
        assert found["mmcs_truth_to_learned"] == pytest.approx(random, abs=0.1), sae.name


def test_features_fire_as_often_and_as_strongly_as_asked() -> None:
    found = drawn(firing_probability=0.1, firing_decay=0.8, strength=(0.5, 1.5))
    expected = 0.1 * 0.8 ** np.arange(13)
    np.testing.assert_allclose((found > 0).mean(axis=0), expected, atol=0.006)
    present = found[found > 0]
    assert present.min() >= 0.5
    assert present.mean() == pytest.approx(1, abs=0.02)


def test_correlated_features_fire_together_and_as_often() -> None:
    alone, together = drawn(firing_probability=0.1) > 0, drawn(firing_probability=0.1, correlation=0.6) > 0
    np.testing.assert_allclose(together.mean(axis=0), 0.1, atol=0.006)
    assert np.corrcoef(alone[:, 0], alone[:, 1])[0, 1] == pytest.approx(0, abs=0.02)
    assert np.corrcoef(together[:, 0], together[:, 1])[0, 1] > 0.2


def test_children_fire_only_with_their_parents() -> None:
    fires = drawn(firing_probability=0.4, branching=3) > 0
    for child in range(1, 13):
        assert not np.any(fires[:, child] & ~fires[:, (child - 1) // 3])
    assert fires[:, 12].mean() == pytest.approx(0.4**3, abs=0.01)


def test_a_fill_depends_on_its_place_alone() -> None:
    whole, _ = synthetic.SyntheticHarvest(stream(), ("hook_synthetic",), FillStart()).fill(20_000)
    first = synthetic.SyntheticHarvest(stream(), ("hook_synthetic",), FillStart())
    _, middle = first.fill(9_999)
    rest, _ = synthetic.SyntheticHarvest(stream(), ("hook_synthetic",), middle).fill(10_001)
    np.testing.assert_array_equal(rest["hook_synthetic"], whole["hook_synthetic"][9_999:])


def test_what_is_at_the_second_hook_point_is_a_fixed_map_of_the_first() -> None:
    names = ("hook_synthetic", "hook_synthetic_out")
    both, _ = synthetic.SyntheticHarvest(stream(), names, FillStart()).fill(10_000)
    x, y = (np.asarray(both[name]) for name in names)
    onward, _, rank, _ = np.linalg.lstsq(x, y)
    assert rank == 32
    np.testing.assert_allclose(x @ onward, y, atol=1e-5)
    assert (y**2).mean() == pytest.approx((x**2).mean(), rel=0.2)
    other = stream().model_copy(update={"seed": 1})
    rows, _ = synthetic.SyntheticHarvest(other, names, FillStart()).fill(10_000)
    assert not np.allclose(rows["hook_synthetic"] @ onward, rows["hook_synthetic_out"], atol=0.01)


def test_a_toy_model_of_superposition_spreads_its_features_evenly() -> None:
    spec = SyntheticSpec(n_features=5, d_in=2, firing_probability=0.05, directions="toy_model")
    directions = np.asarray(synthetic.truth(spec, seed=0).directions)
    cosines = directions @ directions.T
    np.testing.assert_allclose(np.diag(cosines), 1, atol=1e-5)
    assert np.sort(cosines, axis=1)[:, -2].max() < 0.6, "five directions in a plane, none close to another"


def test_similarity_is_that_of_the_worked_example() -> None:
    truth = np.array([[1, 0], [0, 1], [-0.6, 0.8]])
    learned = np.array([[0.8, 0.6], [0.6, 0.8], [0, -1], [1, 0]])
    found = feature_recovery.similarity(truth, learned)
    assert found["mmcs_truth_to_learned"] == pytest.approx(0.693333, abs=1e-6)
    assert found["mmcs_learned_to_truth"] == pytest.approx(0.65, abs=1e-6)
    assert feature_recovery.assignment(truth, learned)["mcc"] == pytest.approx(0.866667, abs=1e-6)
    assert sum(found["max_cosines_truth_to_learned"]) == 3


@pytest.mark.parametrize(("d_in", "d_sae", "expected"), [(10, 200, 0.747), (64, 256, 0.346), (32, 64, 0.392)])
def test_random_directions_reach_the_known_chance_level(d_in: int, d_sae: int, expected: float) -> None:
    truth = np.random.default_rng(1).normal(size=(400, d_in))
    assert feature_recovery.control(truth, d_sae)["mmcs_truth_to_learned"] == pytest.approx(expected, abs=0.01)


def held_out(spec: StreamSpec, n_rows: int) -> tuple[synthetic.Truth, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The truth of a stream, its held-out rows, and the strengths of the features in them."""
    assert spec.synthetic is not None
    known = synthetic.truth(spec.synthetic, spec.seed)
    chunks = list(synthetic.held_out(spec, known, n_rows))
    x, strengths = (np.concatenate([np.asarray(getattr(c, part))[: c.n_rows] for c in chunks]) for part in ("x", "strengths"))
    return known, x, strengths


def baselines(spec: StreamSpec, strengths: np.ndarray[Any, Any], x: np.ndarray[Any, Any]) -> dict[str, float]:
    assert spec.synthetic is not None
    found = feature_recovery.Baselines(np.asarray(synthetic.truth(spec.synthetic, spec.seed).directions))
    for first in range(0, len(x), 3000):
        found.add(strengths[first : first + 3000], x[first : first + 3000])
    return found.figures()


@pytest.mark.parametrize(
    ("n", "d", "p", "projection", "affine", "mean"),
    [(400, 100, 0.05, 0.0128, 0.01199, 0.0160), (512, 256, 0.01, 0.00221, 0.00164, 0.00331)],
)
def test_the_baselines_are_those_of_the_theory(
    n: int, d: int, p: float, projection: float, affine: float, mean: float
) -> None:
    spec = stream(n_features=n, d_in=d, firing_probability=p)
    _, x, strengths = held_out(spec, 20_000)
    found = baselines(spec, strengths, x)
    assert found["readout_mse_mean"] == pytest.approx(mean, rel=0.03)
    assert found["readout_mse_projection"] == pytest.approx(projection, rel=0.03)
    assert found["readout_mse_affine"] == pytest.approx(affine, rel=0.06)


def synthetic_job(**changes: Any) -> JobSpec:
    optimizer = {"lr": 3e-3, "lr_warm_up": 0.05, "lr_decay": 0.2, "sparsity_warm_up": 0.1}
    architectures: list[dict[str, Any]] = [
        {"kind": "standard_tied", "d_sae": 64, "l1_coefficient": 0.2},
        {"kind": "topk", "d_sae": 64, "k": 3},
    ]
    return JobSpec.model_validate({
        "stream": {
            "synthetic": {"n_features": 64, "d_in": 32}, "tokens": 3000 * 512, "batch": 512, "seed": 1,
            "buffer_rows": 1 << 18,
        },
        "saes": [
            {"hook_name": "hook_synthetic", "architecture": item, "optimizer": optimizer} for item in architectures
        ],
        "log_every": 1000,
        "evaluation": {"tokens": 20_000},
    } | changes)  # fmt: skip


def test_a_job_finds_the_features_and_says_how_well(tmp_path: Any) -> None:
    recorder = Recorder()
    final = pipeline.run(synthetic_job(), Storage(tmp_path.as_uri()), "job", recorder)
    assert final is not None
    for name in ("standard_tied_64", "topk_64"):
        measured = final.metrics[name]
        assert measured["mmcs_truth_to_learned"] > 0.9
        assert measured["random_mmcs_truth_to_learned"] < 0.45
        assert measured["random_l0"] == pytest.approx(measured["l0"], rel=0.02)
        assert measured["random_fvu"] > 2 * measured["fvu"]
        assert measured["random_f1"] < measured["f1"] / 2
        assert measured["random_readout_mse"] > measured["readout_mse"]
        assert measured["mcc"] > 0.85
        assert measured["f1"] > 0.5
        assert measured["readout_mse"] < measured["readout_mse_affine"] < measured["readout_mse_mean"]
    assert final.metrics["standard_tied_64"]["relative_reconstruction_bias"] < 0.95, "L1 shrinks"
    assert final.metrics["topk_64"]["relative_reconstruction_bias"] == pytest.approx(1, abs=0.01)
    over_time = [row["mmcs_truth_to_learned"] for row in recorder.rows if row["sae"] == "standard_tied_64"]
    assert over_time[0] < over_time[-1]
    assert sum(recorder.rows[-1]["max_cosines_truth_to_learned"]) == 64


def test_a_synthetic_job_goes_on_from_its_checkpoint_to_the_same_figures(tmp_path: Any) -> None:
    job = synthetic_job(checkpoints={"every_tokens": 250 * 512})
    job = job.model_copy(update={"stream": job.stream.model_copy(update={"tokens": 600 * 512})})
    storage, whole = Storage(tmp_path.as_uri()), Recorder()
    undisturbed = pipeline.run(job, storage, "whole", whole)
    resumed = pipeline.run(job, storage, "resumed", Recorder(), resume_from=(whole.checkpoints[0].key,))
    assert undisturbed is not None
    assert resumed is not None
    for name in ("standard_tied_64", "topk_64"):
        assert resumed.metrics[name]["mcc"] == undisturbed.metrics[name]["mcc"]
        assert resumed.metrics[name]["fvu"] == undisturbed.metrics[name]["fvu"]


def test_a_stream_has_one_source() -> None:
    model, dataset = {"name": "gpt2"}, {"path": "text"}
    toy = {"n_features": 4, "d_in": 2}
    for given in ({"model": model}, {"dataset": dataset}, {}, {"synthetic": toy, "model": model, "dataset": dataset}):
        with pytest.raises(ValidationError):
            StreamSpec.model_validate({"tokens": 1000, "batch": 100} | given)
    with pytest.raises(ValidationError, match="hook_synthetic"):
        synthetic_job(saes=[{"hook_name": "blocks.0.hook_out", "architecture": {"kind": "topk", "d_sae": 64, "k": 3}}])


def test_features_do_not_depend_on_how_many_rows_are_asked_for() -> None:
    known, x, strengths = held_out(stream(), 100)
    assert strengths.shape == (100, 64)
    np.testing.assert_allclose(x, strengths @ known.directions, atol=1e-5)
    assert np.all(strengths >= 0)
    np.testing.assert_array_equal(held_out(stream(), 5000)[1][:100], x)
