"""What quality.py has measured, as a table and a picture."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

L0 = (16, 32, 64)
COLOURS = {"ours": "#4477aa", "dictionary_learning": "#ee6677", "sae_lens": "#228833"}


def write(folder: Path) -> None:
    """Writes quality.md and quality.png from all the results below `folder`."""
    found = [
        json.loads(line) | {"hook": path.parent.name}
        for path in sorted(folder.glob("*/*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    (folder / "quality.md").write_text(f"{comparison(found)}\n{table(found)}")
    draw(found, folder / "quality.png")


def best(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each hook point, kind, library and sparsity the learning rate that did best, by FVU times L0."""
    chosen: dict[tuple[Any, ...], dict[str, Any]] = {}
    for item in found:
        name = (item["hook"], item["kind"], item["library"], item["sparsity"])
        if name not in chosen or item["fvu"] * item["l0"] < chosen[name]["fvu"] * chosen[name]["l0"]:
            chosen[name] = item
    return sorted(chosen.values(), key=lambda item: (item["hook"], item["kind"], item["library"], item["l0"]))


def at(l0: float, points: list[dict[str, Any]]) -> float:
    """The FVU at an L0, between the measured ones on logarithmic axes; nan outside of them, with a tenth's tolerance."""
    points = sorted(points, key=lambda item: item["l0"])
    if len(points) < 2 or not points[0]["l0"] / 1.1 <= l0 <= points[-1]["l0"] * 1.1:
        return float("nan")
    x, y = (np.log([item[name] for item in points]) for name in ("l0", "fvu"))
    index = int(np.clip(np.searchsorted(x, np.log(l0)), 1, len(x) - 1))
    slope = (y[index] - y[index - 1]) / (x[index] - x[index - 1])
    return float(np.exp(y[index - 1] + slope * (np.log(l0) - x[index - 1])))


def comparison(found: list[dict[str, Any]]) -> str:
    """FVU of each library at the same L0, and ours relative to the best other one."""
    libraries = [name for name in COLOURS if any(item["library"] == name for item in found)]
    lines = [f"| hook point | kind | L0 | {' | '.join(libraries)} | ours / better peer |", "|---" * (4 + len(libraries)) + "|"]
    chosen = best(found)
    for hook, kind, l0 in product(*(dict.fromkeys(item[name] for item in chosen) for name in ("hook", "kind")), L0):
        here = {
            name: at(l0, [item for item in chosen if (item["hook"], item["kind"], item["library"]) == (hook, kind, name)])
            for name in libraries
        }
        others = [value for name, value in here.items() if name != "ours" and not np.isnan(value)]
        ratio = f"{here['ours'] / min(others):.3f}" if others and "ours" in here else "-"
        lines.append(f"| {hook} | {kind} | {l0} | {' | '.join(f'{value:.4f}' for value in here.values())} | {ratio} |")
    return "\n".join(lines) + "\n"


def table(found: list[dict[str, Any]]) -> str:
    """What was measured."""
    columns = ("hook point", "kind", "library", "sparsity", "lr", "l0", "fvu", "never fired", "s")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [
        f"| {item['hook']} | {item['kind']} | {item['library']} | {item['sparsity']:g} | {item['lr']:g} | {item['l0']:.1f} "
        f"| {item['fvu']:.4f} | {item['never_fired_share']:.3f} | {item['seconds']:.0f} |"
        for item in best(found)
    ]
    return "\n".join(lines) + "\n"


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """FVU against L0, one panel for each kind and hook point."""
    from matplotlib.figure import Figure

    chosen = best(found)
    hooks, kinds = (list(dict.fromkeys(item[name] for item in chosen)) for name in ("hook", "kind"))
    figure = Figure(figsize=(3.6 * len(kinds), 3.6 * len(hooks)), layout="constrained")
    panels = figure.subplots(len(hooks), len(kinds), squeeze=False, sharex=True, sharey=True)
    for (row, hook), (column, kind) in product(enumerate(hooks), enumerate(kinds)):
        panel = panels[row, column]
        for library, colour in COLOURS.items():
            mine = [item for item in chosen if (item["hook"], item["kind"], item["library"]) == (hook, kind, library)]
            panel.plot([item["l0"] for item in mine], [item["fvu"] for item in mine], marker="o", color=colour, label=library)
        panel.set(title=f"{kind}, {hook}", xscale="log", yscale="log", xlabel="L0", ylabel="FVU")
        panel.title.set_fontsize(9)
        panel.grid(alpha=0.3, which="both")
    panels[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=120)
