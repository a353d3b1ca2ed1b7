"""The picture of a model's activations, layer by layer."""

from pathlib import Path
from typing import Any

from sae_service.analysis.statistics.records import Layer, NormFigures, Statistics

BLUE, RED, GREEN, GREY = "#4477aa", "#ee6677", "#228833", "#888888"
COLOURS = (BLUE, GREEN, "#ccaa44", RED)


def draw(found: Statistics, path: Path) -> None:
    """Norms, their growth and their outliers, how much context layers depend on, and what their heads read and write."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(20, 8.5), layout="constrained")
    panels = figure.subplots(2, 4).flatten()
    parts = (_norms, _growth, _positions, _outliers, _cuts, _distances, _shares, _weights)
    for panel, part in zip(panels, parts, strict=True):
        part(panel, found)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    name, left_out = Path(found.model).name, ", ".join(map(str, found.exclude)) or "nothing"
    figure.suptitle(f"{name}: {found.rows:,} tokens of text in rows of {found.context_size}; left out: {left_out}")
    figure.savefig(path, dpi=130)


def _drawn(panel: Any, layers: list[tuple[int, NormFigures]], label: str, colour: str) -> None:
    """The medians, with the band of the middle nine tenths."""
    if layers:
        places, norms = zip(*layers, strict=True)
        panel.plot(places, [one.quantiles["0.5"] for one in norms], color=colour, label=label, marker=".")
        low, high = ([one.quantiles[share] for one in norms] for share in ("0.05", "0.95"))
        panel.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)


def _of(found: Statistics, part: str) -> list[tuple[int, NormFigures]]:
    return [(one.layer, figures) for one in found.layers if (figures := getattr(one, part)) is not None]


def _norms(panel: Any, found: Statistics) -> None:
    embedding = [] if found.embedding is None else [(-1, found.embedding)]
    _drawn(panel, embedding + _of(found, "residual"), "residual stream after the block", BLUE)
    _drawn(panel, _of(found, "attention"), "what its attention writes", RED)
    _drawn(panel, _of(found, "mlp"), "what its MLP writes", GREEN)
    panel.set(yscale="log", xlabel="layer (-1: embedding)", title="Norms: median, and 5 % to 95 %")
    panel.legend(fontsize="small")


def _growth(panel: Any, found: Statistics) -> None:
    """All but the first block's, which begins with embeddings and is told in the title."""
    layers = [one for one in found.layers if one.growth is not None and one.median_growth is not None]
    later = [one for one in layers if one.layer]
    places = [one.layer for one in later]
    panel.axhline(1, color=GREY, linewidth=0.8)
    panel.plot(places, [one.growth for one in later], color=RED, marker=".", label="of the mean norm")
    panel.plot(places, [one.median_growth for one in later], color=BLUE, marker=".", linestyle="--", label="of the median norm")
    first = f"\n(the first block: {layers[0].growth:.1f})" if len(later) < len(layers) else ""
    panel.set(xlabel="layer", title=f"Growth: norm after a block over before{first}")
    panel.legend(fontsize="small")


def _plain(panel: Any) -> None:
    """Numbers, not powers, on a logarithmic axis, three in a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


def _positions(panel: Any, found: Statistics) -> None:
    """Norms along the row of the model, of a few of the hook points that were measured."""
    last = len(found.hook_points) - 1
    for which, share in enumerate((0, 1 / 3, 2 / 3, 1)):
        one = found.hook_points[round(share * last)]
        if which and one is found.hook_points[round((which - 1) / 3 * last)]:
            continue
        places = [(group.first + group.last) / 2 for group in one.by_position]
        medians = [group.quantiles["0.5"] for group in one.by_position]
        panel.plot(places, medians, marker=".", color=COLOURS[which])
        style = {"xytext": (0, 5), "textcoords": "offset points", "ha": "right", "fontsize": "small", "color": COLOURS[which]}
        panel.annotate(one.hook_name, (places[-1], medians[-1]), **style)
    panel.set(xscale="symlog", yscale="log", xlabel="position in the row", title="Median norm by position")
    panel.margins(y=0.1)


def _outliers(panel: Any, found: Statistics) -> None:
    """The longest row, and the largest dimension, of each hook point in the order of the job."""
    places = range(len(found.hook_points))
    panel.plot(places, [one.outliers.largest_ratio for one in found.hook_points], color=RED, marker=".")
    panel.axhline(found.hook_points[0].outliers.multiple, color=GREY, linewidth=0.8, linestyle="--")
    panel.set(yscale="log", xlabel="hook point", title="Largest norm over the median (red), and the\n"
              "largest dimension's share of the variance (blue)")  # fmt: skip
    panel.yaxis.label.set_color(RED)
    beside = panel.twinx()
    beside.plot(places, [one.dimensions[0].variance_share for one in found.hook_points], color=BLUE, marker=".")
    beside.set(ylim=(0, 1))
    beside.tick_params(axis="y", colors=BLUE)
    panel.tick_params(axis="y", which="both", colors=RED)


def _cuts(panel: Any, found: Statistics) -> None:
    layers = [one for one in found.layers if one.cut_cosines is not None]
    for which, length in enumerate(found.cut_lengths):
        shade = which / max(len(found.cut_lengths) - 1, 1)
        cosines = [one.cut_cosines[which] for one in layers if one.cut_cosines is not None]
        panel.plot([one.layer for one in layers], cosines, color=(0.85 - 0.6 * shade, 0.8 - 0.5 * shade, 0.9 - 0.2 * shade),
                   marker=".", label=f"last {length}")  # fmt: skip
    panel.set(xlabel="layer", title=f"Cosine to the row with all context ({found.cut_positions} positions)")
    panel.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def _heads(panel: Any, layers: tuple[Layer, ...], figure: str, colour: str) -> None:
    """A point for each head, and a line of the medians."""
    known = [(one.layer, values) for one in layers if (values := getattr(one.heads, figure))]
    for layer, values in known:
        panel.scatter([layer] * len(values), values, s=10, color=colour, alpha=0.5, linewidths=0)
    panel.plot([layer for layer, _ in known], [sorted(values)[len(values) // 2] for _, values in known], color=colour)


def _distances(panel: Any, found: Statistics) -> None:
    _heads(panel, found.layers, "distance", BLUE)
    if found.even_distance is not None:
        panel.axhline(found.even_distance, color=GREY, linewidth=0.8, linestyle="--", label="even attention")
        panel.legend(fontsize="small")
    panel.set(xlabel="layer", title="Mean attention distance of each head, in tokens")


def _shares(panel: Any, found: Statistics) -> None:
    _heads(panel, found.layers, "first_share", RED)
    panel.set(xlabel="layer", ylim=(-0.02, 1.02), title="Share of each head's attention on the first position")


def _weights(panel: Any, found: Statistics) -> None:
    _heads(panel, found.layers, "ov_spectral", GREEN)
    panel.set(yscale="log", xlabel="layer", title="Spectral norm of W_OV of each head")
    _plain(panel)
