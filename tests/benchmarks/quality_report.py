"""What quality.py has measured, as a table and a picture."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

L0 = (16, 32, 64)
COLUMNS = ("library", "hook", "kind", "seed")
COLOURS = {"ours": "#4477aa", "dictionary_learning": "#ee6677", "sae_lens": "#228833"}


def write(folder: Path) -> None:
    """Writes quality.md and quality.png from all the results below `folder`."""
    reported, chosen = load(folder, "reported"), best(load(folder, "held_out"))
    (folder / "quality.md").write_text(
        f"## Trained anew with the chosen rate, on reported.npy\n\n{comparison(reported)}\n"
        f"## As chosen, on held_out.npy\n\n{comparison(chosen)}\n"
        f"## What was measured on reported.npy\n\n{table(reported)}\n"
        f"## What was chosen on held_out.npy\n\n{table(chosen)}"
    )
    draw(reported, folder / "quality.png")


def load(folder: Path, rows: str) -> list[dict[str, Any]]:
    """What was measured on one set of rows, in the order of the tables."""
    found = [
        {"seed": 0} | json.loads(line) | {"hook": path.parents[1].name}
        for path in folder.glob(f"*/{rows}/*.jsonl")
        for line in path.read_text().splitlines()
    ]
    return sorted(found, key=lambda item: (item["hook"], item["kind"], list(COLOURS).index(item["library"]), item["l0"]))


def best(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each hook point, kind, library and sparsity the learning rate that did best, by FVU times L0."""
    chosen: dict[tuple[Any, ...], dict[str, Any]] = {}
    for item in sorted(found, key=lambda item: item["fvu"] * item["l0"]):
        chosen.setdefault(tuple(item[name] for name in ("hook", "kind", "library", "sparsity")), item)
    return [item for item in found if item in chosen.values()]


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
    """FVU of each library at the same L0, and ours relative to the best other one: the seeds' geometric mean, and each's."""
    libraries, hooks, kinds, seeds = (list(dict.fromkeys(item[name] for item in found)) for name in COLUMNS)
    if "ours" not in libraries or len(libraries) == 1:
        return ""
    columns = ("hook point", "kind", "L0", *libraries, "ours / better peer", "by seed")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for hook, kind, l0 in product(hooks, kinds, L0):
        here = {
            library: [at(l0, select(found, hook=hook, kind=kind, library=library, seed=seed)) for seed in sorted(seeds)]
            for library in libraries
        }
        fvu = {library: float(np.exp(np.mean(np.log(values)))) for library, values in here.items()}
        peer = min(set(fvu) - {"ours"}, key=lambda library: np.nan_to_num(fvu[library], nan=np.inf))
        by_seed = " ".join(f"{ours / other:.3f}" for ours, other in zip(here["ours"], here[peer], strict=True))
        values = " | ".join(f"{value:.4f}" for value in fvu.values())
        lines.append(f"| {hook} | {kind} | {l0} | {values} | {fvu['ours'] / fvu[peer]:.3f} | {by_seed} |")
    return "\n".join(lines) + "\n"


def select(found: list[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    """Those results that have the wanted values."""
    return [item for item in found if wanted.items() <= item.items()]


def table(found: list[dict[str, Any]]) -> str:
    """What was measured, a row for each seed."""
    columns = ("hook point", "kind", "library", "sparsity", "lr", "seed", "l0", "fvu", "never fired", "s")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [
        f"| {item['hook']} | {item['kind']} | {item['library']} | {item['sparsity']:g} | {item['lr']:g} | {item['seed']} "
        f"| {item['l0']:.1f} | {item['fvu']:.4f} | {item['never_fired_share']:.3f} | {item['seconds']:.0f} |"
        for item in found
    ]
    return "\n".join(lines) + "\n"


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """FVU against L0, one panel for each kind and hook point, a line for each seed."""
    from matplotlib.figure import Figure

    libraries, hooks, kinds, seeds = (list(dict.fromkeys(item[name] for item in found)) for name in COLUMNS)
    figure = Figure(figsize=(3.6 * len(kinds), 3.6 * len(hooks)), layout="constrained")
    panels = figure.subplots(len(hooks), len(kinds), squeeze=False, sharex=True, sharey=True)
    for (row, hook), (column, kind) in product(enumerate(hooks), enumerate(kinds)):
        panel = panels[row, column]
        for library, seed in product(libraries, seeds):
            mine = select(found, hook=hook, kind=kind, library=library, seed=seed)
            panel.plot(
                [item["l0"] for item in mine], [item["fvu"] for item in mine], marker="o", markersize=4, linewidth=1,
                color=COLOURS[library], label=library if seed == seeds[0] else None,
            )  # fmt: skip
        panel.set(title=f"{kind}, {hook}", xscale="log", yscale="log", xlabel="L0", ylabel="FVU")
        panel.title.set_fontsize(9)
        panel.grid(alpha=0.3, which="both")
    panels[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=120)
