"""The strongest latents over all prompts, with every figure that there is of each, and the graph of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from jaxtyping import Float

from sae_service.analysis.attribution.nodes import Nodes
from sae_service.analysis.attribution.of_prompt import OnPrompt
from sae_service.analysis.attribution.records import Correlations, Edge, LatentNode

FEWEST = 3
"""Effects that a correlation is of."""


@dataclass(frozen=True)
class Found:
    """Latents of one SAE on one prompt, and their effects."""

    prompt: int
    sae: str
    nodes: Nodes
    effects: Float[np.ndarray, " nodes"]


@dataclass(frozen=True)
class Row:
    """One of them: its group and its index there."""

    group: Found
    index: int

    @property
    def effect(self) -> float:
        """To the first order."""
        return float(self.group.effects[self.index])


def table(found: Sequence[Found], top: int) -> list[Row]:
    """The rows of the largest effects, the largest first."""
    every = [Row(group, index) for group in found for index in range(len(group.nodes))]
    return sorted(every, key=lambda row: -abs(row.effect))[:top]


def rows(shown: Sequence[Row], prompts: Sequence[OnPrompt], n_exact: int) -> tuple[LatentNode, ...]:
    """The rows with their figures; the first ones with exact effects. Raises Stopped."""
    dropped, exact, qk = np.zeros(len(shown)), dict[int, float](), dict[int, float]()
    for places in _by_group(shown):
        group = shown[places[0]].group
        prompt = prompts[group.prompt]
        dropped[places] = prompt.grad_drop(group.nodes.chosen(_indices(shown, places)))
        first = [place for place in places if place < n_exact]
        if first:
            chosen = group.nodes.chosen(_indices(shown, first))
            exact |= dict(zip(first, prompt.exact(chosen).tolist(), strict=True))
            softmax = prompt.qk(chosen)
            qk |= {} if softmax is None else dict(zip(first, softmax.tolist(), strict=True))
    return tuple(
        _node(row, prompts[row.group.prompt], float(dropped[place]), qk.get(place), exact.get(place))
        for place, row in enumerate(shown)
    )


def _by_group(shown: Sequence[Row]) -> list[list[int]]:
    """The places of the rows of each group."""

    def group(place: int) -> tuple[int, str]:
        return shown[place].group.prompt, shown[place].group.sae

    return [list(places) for _, places in groupby(sorted(range(len(shown)), key=group), key=group)]


def _indices(shown: Sequence[Row], places: Sequence[int]) -> np.ndarray:
    return np.array([shown[place].index for place in places])


def _node(row: Row, prompt: OnPrompt, dropped: float, qk: float | None, exact: float | None) -> LatentNode:
    nodes, index = row.group.nodes, row.index
    position = int(nodes.positions[index])
    token = prompt.texts[int(prompt.one.tokens[position])]
    return LatentNode(
        prompt=row.group.prompt, sae=row.group.sae, latent=int(nodes.latents[index]), position=position, token=token,
        activation=float(nodes.activations[index]), patched=float(nodes.patched[index]), effect=row.effect, grad_drop=dropped,
        qk=qk, exact=exact,
    )  # fmt: skip


def correlations(nodes: Sequence[LatentNode]) -> dict[str, Correlations]:
    """Of each approximation with the exact effects; GradDrop gives sizes, so there it is with their sizes."""
    known = [node for node in nodes if node.exact is not None]
    exact, effect = (np.array([getattr(node, name) for node in known], float) for name in ("exact", "effect"))
    dropped = np.array([node.grad_drop for node in known])
    found = {"effect": _correlation(effect, exact)}
    if known and all(node.qk is not None for node in known):
        found["qk"] = _correlation(np.array([node.qk for node in known], float), exact)
    return found | {
        "effect_size": _correlation(np.abs(effect), np.abs(exact)),
        "grad_drop": _correlation(dropped, np.abs(exact)).model_copy(update={"mean_error": None}),
    }


def _correlation(values: np.ndarray, exact: np.ndarray) -> Correlations:
    from scipy.stats import rankdata

    error = float(np.abs(values - exact).mean()) if len(exact) else None
    if len(exact) < FEWEST or not np.ptp(values) or not np.ptp(exact):
        return Correlations(pearson=None, spearman=None, mean_error=error)
    pearson, spearman = (float(np.corrcoef(of(values), of(exact))[0, 1]) for of in (np.asarray, rankdata))
    return Correlations(pearson=pearson, spearman=spearman, mean_error=error)


def graph(shown: Sequence[Row], prompts: Sequence[OnPrompt], n_nodes: int, order: Mapping[str, int]) -> tuple[Edge, ...]:
    """The edges between the first rows of each prompt. Raises Stopped."""
    edges = list[Edge]()
    for index, prompt in enumerate(prompts):
        places = [place for place, row in enumerate(shown) if row.group.prompt == index][:n_nodes]
        by_sae = [[place for place in places if shown[place].group.sae == name] for name in prompt.saes]
        groups = [group for group in by_sae if group]
        nodes = [shown[group[0]].group.nodes.chosen(_indices(shown, group)) for group in groups]
        for (of, source), (to, target), weight in prompt.edges(nodes, order):
            edges.append(Edge(source=groups[of][source], target=groups[to][target], weight=weight))
    return tuple(sorted(edges, key=lambda edge: (-abs(edge.weight), edge.source, edge.target)))
