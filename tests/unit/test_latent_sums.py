"""What is summed up of latents in one pass equals what is computed from all activations at once, however they come in batches."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from sae_service.analysis.coactivity import PARTNERS, STRONGEST, Coactivity
from sae_service.analysis.correlation import Correlation
from sae_service.analysis.firing import firing, pairs_of
from sae_service.analysis.histogram import N_BINS, Histogram
from sae_service.analysis.kept import Kept, drawn
from tests.saes import KINDS, random_sae, rows

D_SAE, PASSAGE = 12, 5


def activations(n_rows: int = 400, seed: int = 0) -> np.ndarray:
    """Sparse activations, some of them equal, of latents of very different sizes; the last never fires."""
    random = np.random.default_rng(seed)
    values = np.round(random.exponential(size=(n_rows, D_SAE)), 2) * 10.0 ** np.arange(-3, D_SAE - 3)
    fires = random.uniform(size=values.shape) < np.linspace(0.02, 0.6, D_SAE)
    fires[:, -1] = False
    return (values * fires).astype(np.float32)


def batches(acts: np.ndarray, n_rows: int) -> list[tuple[np.ndarray, int]]:
    """The rows in batches, with the number of the first of each."""
    return [(acts[first : first + n_rows], first) for first in range(0, len(acts), n_rows)]


@pytest.mark.parametrize("kind", KINDS)
def test_what_fires_is_what_the_sae_encodes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_service.analysis.firing.AT_ONCE", 24 * 16)  # four parts, the last one not full
    sae, x = random_sae(kind), rows()
    np.testing.assert_allclose(firing(sae, x).toarray(), sae.encode(x), rtol=1e-5)
    assert firing(sae, x[:0]).shape == (0, 24)


@pytest.mark.parametrize("n_rows", [5, 50, 400])
def test_the_strongest_passages_are_kept_and_of_equal_ones_the_first(n_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_service.analysis.kept.LEAST_WAITING", 20)
    acts, kept = activations(), Kept(D_SAE, 3)
    for part, first in batches(acts, n_rows):
        places = np.arange(first, first + len(part))
        pairs = pairs_of(csr_array(part), places // PASSAGE, places % PASSAGE)
        kept.add(pairs, pairs.peaks)
    found = kept.settle()
    by_passage = acts.reshape(-1, PASSAGE, D_SAE)
    for latent in range(D_SAE):
        peaks = by_passage[:, :, latent].max(axis=1)
        wanted = [passage for passage in np.argsort(-peaks, kind="stable")[:3] if peaks[passage] > 0]
        mine = found.take(np.flatnonzero(found.latents == latent))
        assert mine.passages.tolist() == wanted
        dense = np.zeros((len(wanted), PASSAGE), np.float32)
        dense[np.repeat(np.arange(len(wanted)), mine.lengths), mine.positions] = mine.values
        np.testing.assert_array_equal(dense, by_passage[wanted, :, latent])


def test_what_is_drawn_is_as_likely_to_be_any_passage() -> None:
    passages, latents = np.arange(20_000), np.full(20_000, 7)
    found = drawn(3, latents, passages)
    assert 0 <= found.min() < found.max() < 1
    assert abs(found.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 0.03
    assert abs(np.corrcoef(found, drawn(3, latents + 1, passages))[0, 1]) < 0.03
    np.testing.assert_array_equal(found[5:9], drawn(3, latents[5:9], passages[5:9]))


@pytest.mark.parametrize("n_rows", [1, 7, 400])
def test_a_histogram_has_the_counts_of_its_final_bins(n_rows: int) -> None:
    acts, histogram = activations(), Histogram(D_SAE)
    for part, _ in batches(acts, n_rows):
        sparse = csr_array(part)
        histogram.add(sparse.indices, sparse.data)
    for latent in range(D_SAE - 1):
        fired, width = acts[acts[:, latent] > 0, latent], histogram.widths[latent]
        assert N_BINS / 2 <= fired.max() / width < N_BINS, "as narrow as a power of two can be"
        wanted = np.bincount((fired / width).astype(int), minlength=N_BINS)
        assert histogram.counts[latent].tolist() == wanted.tolist()
    assert histogram.widths[-1] == 0
    assert not histogram.counts[-1].any()


def strongest_of(acts: np.ndarray) -> np.ndarray:
    """Whether each latent is among the strongest of its row."""
    order = np.argsort(-acts, axis=1, kind="stable")[:, :STRONGEST]
    among = np.zeros(acts.shape, bool)
    np.put_along_axis(among, order, True, axis=1)
    return among & (acts > 0)


@pytest.mark.parametrize("n_rows", [40, 400])
def test_latents_that_fire_together_are_counted_exactly_where_few_do(n_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_service.analysis.coactivity.TOKENS_AT_ONCE", 64)
    acts, coactivity = activations(), Coactivity(D_SAE)
    for part, _ in batches(acts, n_rows):
        coactivity.add(csr_array(part))
    fired = strongest_of(acts).astype(int)
    both = fired.T @ fired
    with np.errstate(invalid="ignore"):
        correlations = np.nan_to_num(np.corrcoef(fired.T), nan=-2) - 4 * ((both == 0) | np.eye(D_SAE, dtype=bool))
    found = coactivity.nearest(4)
    for latent in range(D_SAE):
        wanted = [other for other in np.argsort(-correlations[latent], kind="stable")[:4] if correlations[latent, other] > -2]
        assert found["coactive_latents"][latent].tolist() == wanted + [-1] * (4 - len(wanted))
        assert found["coactive_counts"][latent, : len(wanted)].tolist() == both[latent, wanted].tolist()
        np.testing.assert_allclose(
            found["coactive_correlations"][latent, : len(wanted)], correlations[latent, wanted], rtol=1e-5, atol=1e-6
        )
        cosines = both[latent, wanted] / np.sqrt(both[latent, latent] * np.diag(both)[wanted])
        np.testing.assert_allclose(found["coactive_cosines"][latent, : len(wanted)], cosines, rtol=1e-6)


def test_of_many_partners_the_frequent_ones_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_service.analysis.coactivity.TOKENS_AT_ONCE", 256)
    random, n = np.random.default_rng(0), 4 * PARTNERS
    acts = np.zeros((4096, n), np.float32)
    acts[:, 0] = 1
    acts[np.arange(4096), random.integers(9, n, 4096)] = 1  # each now and then
    acts[::8, 5] = 1
    acts[1::2, 0] = 0
    coactivity = Coactivity(n)
    coactivity.add(csr_array(acts))
    found = coactivity.nearest(1)
    assert (found["coactive_latents"][0, 0], found["coactive_counts"][0, 0]) == (5, 512)


@pytest.mark.parametrize("n_rows", [50, 400])
def test_correlations_with_neurons_are_pearsons(n_rows: int) -> None:
    acts, x = activations(), rows(d_in=6, n_rows=400) + 100
    correlation = Correlation(D_SAE, 6)
    for part, first in batches(acts, n_rows):
        correlation.add(csr_array(part), x[first : first + n_rows])
    strongest = correlation.strongest(2)
    neurons, found = strongest["neurons"], strongest["neuron_correlations"]
    wanted = np.corrcoef(acts[:, :-1].T.astype(np.float64), x.T.astype(np.float64))[: D_SAE - 1, D_SAE - 1 :]
    np.testing.assert_array_equal(neurons[:-1], np.argsort(-np.abs(wanted), axis=1)[:, :2])
    np.testing.assert_allclose(found[:-1], np.take_along_axis(wanted, neurons[:-1], axis=1), atol=1e-5)
    assert neurons[-1].tolist() == [-1, -1]
    norms = np.linalg.norm(acts[:, 3].astype(np.float64)) * np.linalg.norm(x[:, neurons[3, 0]].astype(np.float64))
    np.testing.assert_allclose(strongest["neuron_cosines"][3, 0], acts[:, 3] @ x[:, neurons[3, 0]] / norms, rtol=1e-4)
