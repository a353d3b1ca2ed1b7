"""The figures of a hook point, made of what a pass has counted."""

from collections.abc import Sequence

import numpy as np

from sae_service.analysis.statistics import bins
from sae_service.analysis.statistics.hook_tally import HookTally
from sae_service.analysis.statistics.measuring import OUTLIER_MULTIPLE, Measured
from sae_service.analysis.statistics.moments import Moments
from sae_service.analysis.statistics.norms import SHARES, NormTally
from sae_service.analysis.statistics.records import (
    Dimension,
    HookStatistics,
    NormFigures,
    Outliers,
    PositionCount,
    PositionNorms,
    TokenCount,
    TokenNorms,
)

LISTED = 10
SMALL = (0.01, 0.1, 0.5)
"""Multiples of the rms below which numbers are counted as small."""
VALUE_SHARES = (0.0001, 0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 0.9999)


def _named(shares: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    return {f"{share:g}": float(value) for share, value in zip(shares, values, strict=True)}


def norm_figures(tally: NormTally | None) -> NormFigures | None:
    """The norms at all positions; None where no row counts."""
    if tally is None or not tally.n:
        return None
    smallest, largest = map(float, tally.extremes)
    return NormFigures(
        n=tally.n, mean=tally.mean, deviation=max(tally.mean_square - tally.mean**2, 0) ** 0.5, smallest=smallest, largest=largest,
        quantiles=_named(SHARES, tally.quantiles()),
    )  # fmt: skip


def _by_position(tally: NormTally) -> tuple[PositionNorms, ...]:
    """Those of each group of positions in which a row counts."""
    found = list[PositionNorms]()
    for group, (first, end) in enumerate(zip(tally.starts, [*tally.starts[1:], tally.context_size], strict=True)):
        n = int(tally.counts[first:end].sum())
        if n:
            mean = float(tally.sums[first:end].sum() / n)
            quantiles = _named(SHARES, tally.quantiles(group=group))
            found.append(PositionNorms(first=first, last=end - 1, n=n, mean=mean, quantiles=quantiles))
    return tuple(found)


def statistics(name: str, found: Measured, vocabulary: list[str], excluded: Sequence[int]) -> HookStatistics:
    """All that is told of a hook point."""
    norms, tally = found.norms[name], found.hooks[name]
    moments, pooled = tally.moments, tally.moments.pooled()
    rms = float(np.sqrt(pooled.variance[0] + pooled.mean[0] ** 2))
    smallest, largest, magnitude = map(float, tally.extremes)
    values = bins.quantiles(tally.values, bins.SIGNED_EDGES, VALUE_SHARES, smallest, largest)
    square, norm = float((moments.variance + moments.mean**2).sum()), norm_figures(norms)
    assert norm is not None, "its median was one of finite rows"
    return HookStatistics(
        hook_name=name, d_in=len(moments.mean), norm=norm, by_position=_by_position(norms),
        special_tokens=_special(norms, vocabulary, excluded),
        mean=float(pooled.mean[0]), rms=rms, deviation=float(np.sqrt(pooled.variance[0])), skewness=float(pooled.skewness[0]),
        kurtosis=float(pooled.kurtosis[0]), quantiles=_named(VALUE_SHARES, values), smallest=smallest, largest=largest,
        largest_magnitude=magnitude, not_finite=int(tally.not_finite[0]),
        small_shares={f"{multiple:g}": bins.share_below(tally.values, multiple * rms) for multiple in SMALL},
        total_variance=float(moments.variance.sum()), mean_share=float((moments.mean**2).sum() / square) if square else 0.0,
        dimension_kurtosis=_named(SHARES, np.quantile(moments.kurtosis, SHARES).tolist()), dimensions=_dimensions(moments),
        outliers=_outliers(norms, tally, found.medians[name], vocabulary),
    )  # fmt: skip


def _special(norms: NormTally, vocabulary: list[str], excluded: Sequence[int]) -> tuple[TokenNorms, ...]:
    """Those of the special tokens that are in the text."""
    median = norms.quantiles((0.5,))[0]
    return tuple(
        TokenNorms(
            id=token, token=vocabulary[token], is_excluded=token in excluded, n=int(n), mean=total / n, largest=largest,
            of_median=total / n / median if median else 0.0,
        )
        for token, n, total, largest in zip(norms.tokens, *norms.watched.tolist(), strict=True) if n
    )  # fmt: skip


def _dimensions(moments: Moments) -> tuple[Dimension, ...]:
    variance, kurtosis = moments.variance, moments.kurtosis
    total = variance.sum() or 1.0
    return tuple(
        Dimension(
            dimension=int(index), variance_share=float(variance[index] / total), mean=float(moments.mean[index]),
            deviation=float(np.sqrt(variance[index])), kurtosis=float(kurtosis[index]),
        )
        for index in np.argsort(-variance, kind="stable")[:LISTED]
    )  # fmt: skip


def _outliers(norms: NormTally, tally: HookTally, median: float, vocabulary: list[str]) -> Outliers:
    n = int(tally.outliers.sum())
    places = np.argsort(-tally.outliers, kind="stable")[:LISTED]
    frequent = sorted(tally.outlier_tokens.items(), key=lambda item: (-item[1], item[0]))[:LISTED]
    square = float(norms.squares.sum())
    return Outliers(
        multiple=OUTLIER_MULTIPLE, median=median, n=n, share=n / max(norms.n, 1),
        square_share=float(tally.outlier_square[0]) / square if square else 0.0,
        largest_ratio=float(norms.extremes[1]) / median if median else 0.0,
        tokens=tuple(TokenCount(id=token, token=vocabulary[token], n=count) for token, count in frequent),
        positions=tuple(PositionCount(position=int(at), n=int(tally.outliers[at])) for at in places if tally.outliers[at]),
    )  # fmt: skip
