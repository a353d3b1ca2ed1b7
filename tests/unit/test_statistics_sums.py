"""What statistics are summed with: moments in one pass, histograms of numbers of any size, the norms of W_OV; and what they say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_service.analysis.statistics import bins
from sae_service.analysis.statistics.advice import BFLOAT16_NOISE
from sae_service.analysis.statistics.hook_tally import HookTally
from sae_service.analysis.statistics.moments import Moments
from sae_service.analysis.statistics.norms import NormTally, group_starts, norms_of
from sae_service.analysis.statistics.weights import ov_norms


def test_moments_of_parts_are_those_of_the_whole_where_sums_of_powers_would_cancel() -> None:
    x = np.random.default_rng(0).gamma(2.0, size=(1000, 5)) * [1, 2, 3, 1e-3, 10] + [0, 1e4, -1e5, 1, 0]
    found = Moments.none(5)
    for part in np.split(x, [1, 10, 400, 400, 990]):
        found = found + Moments.of(part)
    centred = x - x.mean(axis=0)
    np.testing.assert_allclose(found.variance, x.var(axis=0), rtol=1e-9)
    np.testing.assert_allclose(found.skewness, (centred**3).mean(axis=0) / x.std(axis=0) ** 3, rtol=1e-6)
    np.testing.assert_allclose(found.kurtosis, (centred**4).mean(axis=0) / x.var(axis=0) ** 2, rtol=1e-6)
    pooled, flat = found.pooled(), x - x.mean()
    assert pooled.n == x.size
    assert float(pooled.variance[0]) == pytest.approx(x.var(), rel=1e-9)
    assert float(pooled.kurtosis[0]) == pytest.approx((flat**4).mean() / x.var() ** 2, rel=1e-9)
    assert float(pooled.skewness[0]) == pytest.approx((flat**3).mean() / x.std() ** 3, rel=1e-9)


def test_a_dimension_that_does_not_vary_has_no_skewness() -> None:
    found = Moments.of(np.ones((3, 1)))
    assert (found.variance[0], found.skewness[0], found.kurtosis[0]) == (0, 0, 0)


@given(st.lists(st.floats(-1e9, 1e9, width=32), min_size=1, max_size=50))
def test_every_number_is_in_the_bin_between_its_edges(values: list[float]) -> None:
    x = np.array(values, np.float32)
    places = bins.signed(x)
    inside = np.abs(x) >= 2.0**bins.LOWEST
    low, high = bins.SIGNED_EDGES[places], bins.SIGNED_EDGES[places + 1]
    assert ((low <= x) & (x <= high))[inside].all()
    assert (np.abs(high - low) <= np.abs(x) / 128 * 1.01)[inside].all()


def test_quantiles_are_right_to_within_a_bin_for_numbers_of_any_size() -> None:
    x = np.exp(np.random.default_rng(1).normal(size=20_000) * 6).astype(np.float32)
    shares = (0, 0.01, 0.5, 0.99, 1)
    counts = bins.counted(bins.magnitudes(x), bins.N_BINS)
    found = bins.quantiles(counts, bins.EDGES, shares, float(x.min()), float(x.max()))
    np.testing.assert_allclose(found, np.quantile(x, shares), rtol=1 / 128)
    signed = bins.counted(bins.signed(np.concatenate([x, -x])), 2 * bins.N_BINS)
    assert bins.share_below(signed, float(np.median(x))) == pytest.approx(0.5, abs=0.005)
    assert bins.share_below(signed, 1e30) == 1


@pytest.mark.parametrize("context_size", [2, 3, 7, 128, 1024])
def test_groups_of_positions_cover_all_and_are_few(context_size: int) -> None:
    starts = group_starts(context_size)
    assert starts == sorted(set(starts))
    assert (starts[0], starts[-1] < context_size) == (0, True)
    assert len(starts) <= 2 * np.log2(context_size) + 2


@pytest.mark.parametrize("n_kv", [1, 2, 4])
def test_norms_of_w_ov_are_those_of_the_matrix_where_heads_share_values_too(n_kv: int) -> None:
    random = np.random.default_rng(0)
    W_V, W_O = random.normal(size=(n_kv, 12, 3)).astype(np.float32), random.normal(size=(4, 3, 12)).astype(np.float32)
    frobenius, spectral = ov_norms(W_V, W_O)
    for head in range(4):
        W_OV = W_V[head // (4 // n_kv)].astype(np.float64) @ W_O[head].astype(np.float64)
        assert frobenius[head] == pytest.approx(np.linalg.norm(W_OV), rel=1e-9)
        assert spectral[head] == pytest.approx(np.linalg.norm(W_OV, 2), rel=1e-9)


def test_the_noise_of_bfloat16_is_what_rounding_makes() -> None:
    x = np.exp2(np.random.default_rng(0).uniform(-8, 8, size=200_000)).astype(np.float32)
    half = np.uint32(0x8000)
    rounded = ((x.view(np.uint32) + half) & np.uint32(0xFFFF0000)).view(np.float32)
    assert np.mean((rounded / x - 1) ** 2) == pytest.approx(BFLOAT16_NOISE, rel=0.02)


def test_rows_that_are_no_numbers_are_counted_and_in_no_other_figure() -> None:
    rows = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    tokens, keep = np.arange(8).reshape(2, 4), np.ones((2, 4), bool)
    keep[0, 0] = False
    rows[0, 0], rows[0, 1], rows[1, 2, 1] = 1000, np.inf, np.nan
    norms = norms_of(rows)
    is_finite = np.isfinite(norms)
    lengths, tally = NormTally(4, [0, 2], (0, 6)), HookTally(3, 4, limit=2.0)
    lengths.add(norms, keep, tokens, is_finite)
    tally.add(rows, norms, keep, tokens, is_finite)
    good = rows[keep & is_finite]
    assert (tally.not_finite[0], tally.moments.n, lengths.n) == (2, 5, 5)
    np.testing.assert_allclose(tally.moments.mean, good.mean(axis=0), rtol=1e-6)
    assert tally.extremes.tolist() == [good.min(), good.max(), 1000], "what a number type has to hold is that of all rows"
    assert lengths.watched[0].tolist() == [1, 0], "a row that is left out is watched too"
    longer = keep & is_finite & (norms > 2)
    assert sum(tally.outlier_tokens.values()) == tally.outliers.sum() == longer.sum() > 0
    assert tally.outlier_square[0] == pytest.approx((norms[longer] ** 2).sum())
    again = HookTally(3, 4, limit=2.0)
    again.restore(tally.state())
    assert again.outlier_tokens == tally.outlier_tokens
    assert again.moments.arrays().tobytes() == tally.moments.arrays().tobytes()
