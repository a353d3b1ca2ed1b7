"""The figures of SAEs on synthetic activations, beside the same computed from all rows at once."""

from typing import Any

import jax
import numpy as np
import pytest

from sae_service.activations import synthetic
from sae_service.errors import Stopped
from sae_service.evaluation import on_synthetic
from sae_service.evaluation.on_synthetic import HeldOutRows
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.sites import Sites
from sae_service.spec import JobSpec

IN, OUT = ("hook_synthetic", 12), ("hook_synthetic_out", 12)
N_FEATURES, N_ROWS, D_SAE = 20, 5000, 36
WRITTEN = {"sae": Sites((IN,), (IN,)), "transcoder": Sites((IN,), (OUT,)), "crosscoder": Sites((IN, OUT), (IN, OUT))}


def job() -> JobSpec:
    stream = {"synthetic": {"n_features": N_FEATURES, "d_in": 12, "noise": 0.01}, "tokens": 1000, "batch": 100}
    sae = {"hook_name": "hook_synthetic", "architecture": {"kind": "topk", "d_sae": D_SAE, "k": 3}}
    return JobSpec.model_validate({"stream": stream, "saes": [sae], "evaluation": {"tokens": N_ROWS}})


def known() -> synthetic.Truth:
    spec = job().stream
    assert spec.synthetic is not None
    return synthetic.truth(spec.synthetic, spec.seed)


def all_rows() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The strengths, and the rows at hook_synthetic."""
    chunks = list(synthetic.held_out(job().stream, known(), N_ROWS))
    strengths, x = (np.concatenate([np.asarray(getattr(c, part))[: c.n_rows] for c in chunks]) for part in ("strengths", "x"))
    return strengths, x


def at(sites: tuple[tuple[str, int], ...], rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Rows at hook points, side by side, in plain NumPy."""
    return np.concatenate([rows if site == IN else rows @ np.asarray(known().onward) for site in sites], axis=1)


def imperfect(sites: Sites) -> InferenceSAE:
    """An SAE whose decoder rows are the features' directions where it writes, disturbed, and some that never fire."""
    random = np.random.default_rng(0)
    directions = np.asarray(known().directions)
    rows = np.concatenate([at(sites.write, directions), np.zeros((D_SAE - N_FEATURES, sites.d_write))])
    W_dec = rows + 0.1 * random.normal(size=(D_SAE, sites.d_write))
    b_enc = np.where(np.arange(D_SAE) < N_FEATURES + 5, -0.2, -100)
    W_enc = np.zeros((sites.d_read, D_SAE))
    W_enc[:, :N_FEATURES] = at(sites.read, directions).T
    W_enc += 0.1 * random.normal(size=W_enc.shape)
    parts = (W_enc, b_enc, W_dec, np.zeros(sites.d_write), np.zeros(D_SAE))
    return InferenceSAE(*(part.astype(np.float32) for part in parts), sites=sites)


def unit(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def error_of_best_line(values: np.ndarray[Any, Any], strengths: np.ndarray[Any, Any]) -> float:
    """The mean squared error of reading each feature, from NumPy's own least squares."""
    errors: list[float] = []
    for value, strength in zip(values.T, strengths.T, strict=True):
        design = np.stack([value, np.ones(len(value))], axis=1).astype(np.float64)
        solution, *_ = np.linalg.lstsq(design, strength.astype(np.float64), rcond=None)
        errors.append(float(np.mean((design @ solution - strength) ** 2)))
    return float(np.mean(errors))


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, Any]]:
    return HeldOutRows(job()).evaluate({name: lambda sites=sites: imperfect(sites) for name, sites in WRITTEN.items()})


@pytest.mark.parametrize("name", WRITTEN)
def test_the_figures_are_those_of_all_rows_at_once(measured: dict[str, dict[str, Any]], name: str) -> None:
    sites, found = WRITTEN[name], measured[name]
    sae, (strengths, rows) = imperfect(sites), all_rows()
    x, y, directions = at(sites.read, rows), at(sites.write, rows), at(sites.write, np.asarray(known().directions))
    acts = np.maximum(x @ sae.W_enc + sae.b_enc, 0)
    y_hat = acts @ sae.W_dec
    assert found["evaluation_tokens"] == N_ROWS
    assert found["l0"] == pytest.approx((acts > 0).sum(axis=1).mean(), rel=1e-3)
    assert found["fvu"] == pytest.approx(((y - y_hat) ** 2).sum() / ((y - y.mean(axis=0)) ** 2).sum(), rel=1e-4)
    cosines = unit(directions) @ unit(np.asarray(sae.W_dec)).T
    assert found["mmcs_truth_to_learned"] == pytest.approx(cosines.max(axis=1).mean(), abs=1e-5)
    wanted, fires = strengths[:, cosines.argmax(axis=0)] > 0, acts > 0
    both = (wanted & fires).sum(axis=0)
    assert found["precision"] == pytest.approx((both / np.maximum(fires.sum(axis=0), 1)).mean(), abs=1e-3)
    assert found["recall"] == pytest.approx((both / wanted.sum(axis=0)).mean(), abs=1e-3)
    assert found["readout_mse"] == pytest.approx(error_of_best_line(acts[:, cosines.argmax(axis=1)], strengths), rel=1e-4)


@pytest.mark.parametrize("name", WRITTEN)
def test_the_baselines_read_where_the_sae_reads(measured: dict[str, dict[str, Any]], name: str) -> None:
    sites, found = WRITTEN[name], measured[name]
    strengths, rows = all_rows()
    x, directions = at(sites.read, rows), at(sites.read, np.asarray(known().directions))
    assert found["l0_truth"] == pytest.approx((strengths > 0).sum(axis=1).mean())
    assert found["readout_mse_projection"] == pytest.approx(error_of_best_line(x @ unit(directions).T, strengths), rel=1e-4)
    design = np.concatenate([x, np.ones((N_ROWS, 1))], axis=1).astype(np.float64)
    solution, *_ = np.linalg.lstsq(design, strengths.astype(np.float64), rcond=1e-6)
    assert found["readout_mse_affine"] == pytest.approx(np.mean((strengths - design @ solution) ** 2), rel=1e-3)
    assert found["readout_mse_mean"] == pytest.approx(strengths.var(axis=0).mean(), rel=1e-5)
    assert found["random_l0"] == pytest.approx(found["l0"], rel=0.05)
    assert found["random_mmcs_truth_to_learned"] < found["mmcs_truth_to_learned"] - 0.1


def test_a_crosscoder_has_the_errors_at_each_hook_point(measured: dict[str, dict[str, Any]]) -> None:
    assert list(measured["crosscoder"]["by_hook_point"]) == ["hook_synthetic", "hook_synthetic_out"]
    assert "by_hook_point" not in measured["transcoder"]


def test_saes_of_one_structure_share_a_program_and_no_two_lie_on_the_device() -> None:
    held: list[int] = []

    def loaded() -> InferenceSAE:
        held.append(sum(array.shape == (D_SAE, 24) for array in jax.live_arrays()))
        return imperfect(WRITTEN["crosscoder"])

    on_synthetic._sums.clear_cache()
    HeldOutRows(job()).evaluate(dict.fromkeys("abc", loaded))
    assert held == [0, 0, 0]
    assert on_synthetic._sums._cache_size() == 1, "the control of random directions is of the same structure"


def test_it_stops_between_two_chunks() -> None:
    with pytest.raises(Stopped):
        HeldOutRows(job()).evaluate({"a": lambda: imperfect(WRITTEN["sae"])}, lambda: True)
