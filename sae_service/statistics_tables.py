"""What the command line draws of a model's activations."""

from rich.table import Column, Table

from sae_service.analysis.statistics.records import HookStatistics, NormFigures, Statistics
from sae_service.text_tables import number

CUTS = (1, 8, 64)
"""Lengths of the context whose cosines are shown."""


def about(found: Statistics) -> Table:
    """On what it was measured."""
    table = Table(show_header=False, box=None)
    excluded = ", ".join(map(str, found.exclude))
    rows = {
        "model": f"{found.model}, {found.dtype}",
        "dataset": f"{found.dataset}, in rows of {found.context_size} tokens",
        "tokens": f"{found.tokens:,} read, {found.rows:,} counted" + (f" (without {excluded})" if excluded else ""),
        "attention": f"on {found.attention_rows:,} tokens" if found.attention_rows else "",
        "cut context": f"at {found.cut_positions:,} positions" if found.cut_positions else "",
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, value)
    return table


def layers(found: Statistics) -> Table:
    """One line for each block: norms, growth, attention, and the cosine to the row that the last tokens alone make."""
    lengths = [length for length in CUTS if length in found.cut_lengths]
    cuts = (f"cosine of {length}" for length in lengths)
    names = ("layer", "residual", "growth", "attention", "MLP", "OV norms", "distance", "on first", *cuts)
    table = Table(*(Column(name, justify="right") for name in names), box=None)
    if found.embedding is not None:
        table.add_row("embed", _norm(found.embedding))
    for one in found.layers:
        heads = one.heads
        cosines = [] if one.cut_cosines is None else [one.cut_cosines[found.cut_lengths.index(length)] for length in lengths]
        growth = "" if one.growth is None else f"×{one.growth:.3f}"
        table.add_row(
            str(one.layer), _norm(one.residual), growth, _norm(one.attention), _norm(one.mlp),
            _span(heads.ov_spectral), _span(heads.distance), _span(heads.first_share), *(f"{cosine:.3f}" for cosine in cosines),
        )  # fmt: skip
    return table


def total_growth(found: Statistics) -> str:
    """The growth over all layers, in words; nothing if the residual stream was not measured."""
    after = [one for one in found.layers if one.residual is not None]
    if len(after) < 2:
        return ""
    first, last = (one.residual.mean for one in (after[0], after[-1]) if one.residual is not None)
    if not first:
        return ""
    rate = (last / first) ** (1 / (len(after) - 1))
    return f"Residual norms grow ×{last / first:.2f} from layer {after[0].layer} to {after[-1].layer}: {rate - 1:+.1%} a layer."


def _norm(one: NormFigures | None) -> str:
    return "" if one is None else number(one.mean)


def _span(values: tuple[float, ...] | None) -> str:
    """The smallest to the largest of a layer's heads."""
    return "" if not values else f"{number(min(values))} to {number(max(values))}"


def hook_points(found: Statistics) -> Table:
    """One line for each hook point that was measured."""
    names = ("hook point", "rms", "median norm", "skewness", "kurtosis", "largest", "below .1 rms", "mean row", "outlier rows")
    table = Table(*names, "dimensions with the largest share of the variance", box=None)
    for one in found.hook_points:
        table.add_row(
            one.hook_name, number(one.rms), number(one.norm.quantiles["0.5"]), number(one.skewness), number(one.kurtosis),
            number(one.largest_magnitude), f"{one.small_shares['0.1']:.1%}", f"{one.mean_share:.1%}", _outliers(one),
            ", ".join(f"{of.dimension} ({of.variance_share:.1%})" for of in one.dimensions[:2]),
        )  # fmt: skip
    return table


def _outliers(one: HookStatistics) -> str:
    rows = one.outliers
    tokens = " ".join(repr(token.token) for token in rows.tokens[:3])
    return f"{rows.n:,} of up to {rows.largest_ratio:.3g}x: {tokens}" if rows.n else "none"


def advice(found: Statistics) -> Table:
    """What the figures say."""
    table = Table(Column("about", no_wrap=True), "what it says", box=None)
    for one in found.advice:
        table.add_row(one.about, one.says)
    return table


def parts(found: Statistics) -> list[Table | str]:
    """All of it."""
    growth = total_growth(found)
    return [about(found), "", layers(found), *([growth] if growth else []), "", hook_points(found), "", advice(found)]

