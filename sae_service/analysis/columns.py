"""The columns of a table with a row for each latent, made of what a pass has seen and of the SAE's weights.

Passages stand in slots: first the `best`, the strongest first, then `per_quantile` of each tenth, the highest tenth first. What
a latent does in the passage of a slot is `activations`, at `positions`, from `offsets[slot]` to `offsets[slot + 1]`, slots being
counted over all latents.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from sae_service.activations.unembedding import Unembedding
from sae_service.analysis import directions
from sae_service.analysis.directions import Alive
from sae_service.analysis.firing import Pairs, joined
from sae_service.analysis.kept import ranks_of
from sae_service.analysis.latents import N_QUANTILES, LatentsPass, LatentTally, Sizes
from sae_service.hook_points import RESIDUAL_SITES, is_before
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.sites import Widths

LISTED = 10
"""Tokens, neighbours and neurons of each latent."""
Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Maker:
    """Makes the columns of the SAEs of one pass.

    Args:
        passed: the pass, at its end.
        unembedding: that of the model; without one there are no tokens that a latent raises or reads.
        alive: called now and then.
    """

    passed: LatentsPass
    sizes: Sizes
    unembedding: Unembedding | None
    alive: Alive

    def columns(self, name: str) -> Columns:
        """The columns of the SAE `name`, and the tokens of the passages in them."""
        tally = self.passed.tallies[name]
        numbers, tokens = self.passed.passages()
        W_dec = np.asarray(tally.sae.W_dec)
        nearest, cosines = directions.nearest(W_dec, W_dec, LISTED, self.alive, is_same=True)
        return {
            **activity(tally, self.passed.n_tokens),
            **tally.coactivity.nearest(LISTED),
            **tally.correlation.strongest(LISTED),
            **directions.aligned(W_dec, LISTED),
            "nearest_latents": nearest,
            "nearest_cosines": cosines,
            **self._of_tokens(tally.sae),
            **self._of_others(name),
            **slots(tally, numbers, tokens, self.sizes),
        }

    def _of_tokens(self, sae: InferenceSAE) -> Columns:
        """The tokens that are raised and lowered, if the SAE writes into the residual stream; of a transcoder also those it reads.
        """
        assert sae.sites is not None
        found: Columns = {}
        if self.unembedding is None:
            return found
        d_model = len(self.unembedding.gain)
        if (written := _residual(sae.sites.write, d_model)) is not None:
            lens = directions.lens_of(self.unembedding)
            found |= directions.read_by(lens, np.asarray(sae.W_dec)[:, written], LISTED, self.alive)
        if not sae.sites.is_autoencoder and sae.sites.read[-1][1] == d_model:
            read = np.asarray(sae.W_enc).T[:, -d_model:]
            found |= directions.best_tokens(read, self.unembedding.W_E, LISTED, self.alive)
        return found

    def _of_others(self, name: str) -> Columns:
        """The latents that a transcoder reads: those of SAEs of the same pass that write before it, by cosine with its encoder."""
        sae = self.passed.tallies[name].sae
        assert sae.sites is not None
        if sae.sites.is_autoencoder:
            return {}
        hook_name, width = sae.sites.read[-1]
        read = np.asarray(sae.W_enc).T[:, -width:]
        found = [(np.full((len(read), 1), -1, np.int32),) * 2 + (np.full((len(read), 1), -np.inf, np.float32),)]
        for index, (other, tally) in enumerate(self.passed.tallies.items()):
            assert tally.sae.sites is not None
            columns = _residual(tally.sae.sites.write, width)
            if other != name and columns is not None and is_before(tally.sae.sites.write[-1][0], hook_name):
                latents, cosines = directions.nearest(read, np.asarray(tally.sae.W_dec)[:, columns], LISTED, self.alive)
                found.append((np.where(latents < 0, -1, index).astype(np.int32), latents, np.where(latents < 0, -np.inf, cosines)))
        if len(found) == 1:
            return {}
        saes, latents, cosines = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :LISTED]
        chosen = (np.take_along_axis(values, order, axis=1) for values in (saes, latents, np.where(latents < 0, 0, cosines)))
        return dict(zip(("read_latent_saes", "read_latents", "read_cosines"), chosen, strict=True))


def _residual(written: Widths, d_model: int) -> slice | None:
    """Which numbers of the rows that are written go into the residual stream: those of the last hook point, if any."""
    name, width = written[-1]
    is_residual = name.split(".")[-1] in RESIDUAL_SITES and width == d_model
    total = sum(width for _, width in written)
    return slice(total - width, total) if is_residual else None


def activity(tally: LatentTally, n_tokens: int) -> Columns:
    """How often and how strongly each latent fires."""
    counts = tally.counts
    return {
        "count": counts,
        "density": (counts / max(n_tokens, 1)).astype(np.float32),
        "largest": tally.largest,
        "mean": (tally.correlation.acts / np.maximum(counts, 1)).astype(np.float32),
        "histogram": tally.histogram.counts,
        "histogram_width": tally.histogram.widths,
    }


def slots(tally: LatentTally, numbers: Int[np.ndarray, " n"], tokens: Int[np.ndarray, "n width"], sizes: Sizes) -> Columns:
    """What latents do in the passages of their slots, and the passages, each once."""
    best, drawn = tally.best.settle(), tally.drawn.settle()
    pairs = joined([best, drawn])
    n_slots = sizes.best + N_QUANTILES * sizes.per_quantile
    places = np.concatenate([ranks_of(best.latents), sizes.best + _quantile_slots(drawn, sizes.per_quantile)])
    order = np.lexsort((places, pairs.latents))
    pairs, places = pairs.take(order), places[order]
    grid = pairs.latents.astype(np.int64) * n_slots + places
    lengths = np.zeros(len(tally.counts) * n_slots, np.int64)
    lengths[grid] = pairs.lengths
    used = np.isin(numbers, pairs.passages)
    passages = np.full(lengths.shape, -1, np.int32)
    passages[grid] = np.searchsorted(numbers[used], pairs.passages)
    peaks = np.full(lengths.shape, -1, np.int32)
    peaks[grid] = tokens[used][passages[grid], _peak_positions(pairs)]
    shape = len(tally.counts), n_slots
    return {
        "passages": passages.reshape(shape), "peak_tokens": peaks.reshape(shape)[:, : sizes.best].copy(),
        "offsets": np.append(0, np.cumsum(lengths)), "positions": pairs.positions, "activations": pairs.values,
        "passage_numbers": numbers[used], "passage_tokens": tokens[used],
    }  # fmt: skip


def _peak_positions(pairs: Pairs) -> Int[np.ndarray, " pairs"]:
    """Where in its passage each latent fires most strongly; of equal places the first."""
    is_peak = pairs.values == np.repeat(pairs.peaks, pairs.lengths)
    tokens = np.flatnonzero(is_peak)
    owners = np.repeat(np.arange(len(pairs)), pairs.lengths)[tokens]
    return pairs.positions[tokens[ranks_of(owners) == 0]].astype(np.int64)


def _quantile_slots(drawn: Pairs, per_quantile: int) -> Int[np.ndarray, " pairs"]:
    """The slot of each drawn pair: those of a latent, by their peaks, are cut into tenths of the same size but for one."""
    order = np.lexsort((drawn.passages, -drawn.peaks, drawn.latents))
    ranks = ranks_of(drawn.latents[order])
    totals = np.bincount(drawn.latents, minlength=1)[drawn.latents[order]]
    tenths = ranks * N_QUANTILES // totals
    firsts = -(-tenths * totals // N_QUANTILES)
    places = np.empty(len(drawn), np.int64)
    places[order] = tenths * per_quantile + ranks - firsts
    return places
