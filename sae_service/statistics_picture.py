"""The picture of a model's activations, layer by layer."""

from pathlib import Path
from typing import Any

from sae_service.analysis.statistics.records import Layer, NormFigures, Statistics

BLUE, RED, GREEN, GREY = "#4477aa", "#ee6677", "#228833", "#888888"


def draw(found: Statistics, path: Path) -> None:
    """Norms and their growth, norms by position, how far back layers look, and how much context they depend on."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8), layout="constrained")
    panels = figure.subplots(2, 3).flatten()
    for panel, part in zip(panels, (_norms, _growth, _positions, _cuts, _distances, _weights), strict=True):
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
    layers = [one for one in found.layers if one.growth is not None and one.median_growth is not None]
    places = [one.layer for one in layers]
    panel.axhline(1, color=GREY, linewidth=0.8)
    panel.plot(places, [one.median_growth for one in layers], color=BLUE, marker=".", label="of the median norm")
    panel.plot(places, [one.growth for one in layers], color=RED, marker=".", linestyle="--", label="of the mean norm")
    panel.set(yscale="log", xlabel="layer", title="Growth: norm after the block over norm before it")
    panel.yaxis.set_major_formatter(_plain)
    panel.yaxis.set_minor_formatter(_plain)
    panel.legend(fontsize="small")


def _plain(value: float, _place: int) -> str:
    return f"{value:.3g}"


def _positions(panel: Any, found: Statistics) -> None:
    """Norms along the row of the model, of a few of the hook points that were measured."""
    last = len(found.hook_points) - 1
    for which, share in enumerate((0, 1 / 3, 2 / 3, 1)):
        one = found.hook_points[round(share * last)]
        if which and one is found.hook_points[round((which - 1) / 3 * last)]:
            continue
        places = [(group.first + group.last) / 2 for group in one.by_position]
        panel.plot(places, [group.quantiles["0.5"] for group in one.by_position], marker=".", label=one.hook_name)
    panel.set(xscale="symlog", yscale="log", xlabel="position in the row", title="Median norm by position")
    panel.legend(fontsize="small")


def _cuts(panel: Any, found: Statistics) -> None:
    layers = [one for one in found.layers if one.cut_cosines is not None]
    for which, length in enumerate(found.cut_lengths):
        shade = which / max(len(found.cut_lengths) - 1, 1)
        cosines = [one.cut_cosines[which] for one in layers if one.cut_cosines is not None]
        panel.plot([one.layer for one in layers], cosines, color=(0.85 - 0.6 * shade, 0.8 - 0.5 * shade, 0.9 - 0.2 * shade),
                   marker=".", label=f"last {length}")  # fmt: skip
    panel.set(xlabel="layer", title=f"Cosine to the row with all context ({found.cut_positions} positions)")
    panel.legend(fontsize="small", ncols=2)


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


def _weights(panel: Any, found: Statistics) -> None:
    _heads(panel, found.layers, "ov_spectral", GREEN)
    panel.set(yscale="log", xlabel="layer", title="Spectral norm of W_OV of each head")
    panel.yaxis.set_major_formatter(_plain)
    panel.yaxis.set_minor_formatter(_plain)
