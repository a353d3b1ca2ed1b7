"""Attribution on one prompt: effects to the first order, with gradients dropped, with the softmax anew, and exact ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float

from sae_service.activations import gradients, observed
from sae_service.activations.difference import Difference
from sae_service.activations.model import LanguageModel
from sae_service.activations.patched import Moves, differences
from sae_service.activations.softmax_paths import through_softmax
from sae_service.analysis.attribution.nodes import Gradients, Nodes, Sums, strongest, written
from sae_service.analysis.prompts import Reading
from sae_service.sae.inference import InferenceSAE

BYTES_AT_ONCE = 1 << 27
"""Of the logits of runs that are done at once, about."""
TAPED_AT_ONCE = 16
"""Runs of which all values are kept for gradients."""


@dataclass
class OnPrompt:
    """A prompt, what is attributed, and how.

    Attributes:
        counterfactual: the prompt that activations are taken over from.
        texts: of all tokens.
        stop_if_asked: shows a sign of life; raises Stopped.
        sums: over all latents of each SAE, once `nodes` were asked for.
    """

    model: LanguageModel
    one: Reading
    counterfactual: Reading | None
    difference: Difference
    saes: Mapping[str, InferenceSAE]
    texts: Sequence[str]
    stop_if_asked: Callable[[], None]
    sums: dict[str, Sums] = field(default_factory=dict)

    @property
    def _sites(self) -> tuple[str, ...]:
        """The hook points that the SAEs write."""
        return tuple(dict.fromkeys(name for sae in self.saes.values() if sae.sites for name in sae.sites.writes))

    @cached_property
    def _gradients(self) -> Gradients:
        return gradients.by_rows(self.model, self.one.tokens, self.difference, self._sites)

    def value(self, one: Reading) -> float:
        """The difference of the logits after a prompt."""
        return self._undisturbed(one, replace(self.difference, direction=None))

    def _undisturbed(self, one: Reading, difference: Difference) -> float:
        nothing = Moves(np.zeros(1, np.int64), {})
        return float(differences(self.model, one.tokens, difference, nothing)[0])

    def nodes(self, top: int) -> dict[str, tuple[Nodes, Float[np.ndarray, " nodes"]]]:
        """The latents of each SAE with the largest effects, and these. Raises Stopped."""
        found = {}
        for name, sae in self.saes.items():
            self.stop_if_asked()
            clean = written(self.model, sae, self.one)
            patch = None if self.counterfactual is None else written(self.model, sae, self.counterfactual)
            chosen, self.sums[name] = strongest(sae, clean, patch, self.one, self._gradients, top)
            found[name] = chosen, chosen.effects(self._gradients)
        return found

    @cached_property
    def _dropped(self) -> list[Gradients]:
        """The gradients without those through each layer in turn."""
        found = list[Gradients]()
        for outputs in gradients.layer_outputs(self.model, lambda names: observed.fit(self.model, names)):
            self.stop_if_asked()
            found.append(gradients.by_rows(self.model, self.one.tokens, self.difference, self._sites, outputs))
        return found

    def grad_drop(self, nodes: Nodes) -> Float[np.ndarray, " nodes"]:
        """The sizes of the effects with the gradient through one layer dropped, summed over layers, over layers but one.

        Source: Kramár et al. 2024, "AtP*", arXiv:2403.00745 (GradDrop).
        """
        sizes = [np.abs(nodes.effects(dropped)) for dropped in self._dropped]
        return np.sum(sizes, axis=0) / max(1, len(sizes) - 1)

    def exact(self, nodes: Nodes) -> Float[np.ndarray, " nodes"]:
        """The effect of patching each alone."""
        before, found = self._undisturbed(self.one, self.difference), list[np.ndarray]()
        for first in range(0, len(nodes), self._at_once):
            self.stop_if_asked()
            moves = nodes.moves.part(first, first + self._at_once)
            found.append(differences(self.model, self.one.tokens, self.difference, moves).astype(np.float64) - before)
        return np.concatenate(found) if found else np.zeros(0)

    @property
    def _at_once(self) -> int:
        return max(1, BYTES_AT_ONCE // (4 * len(self.one.tokens) * self.model.n_vocab))

    @cached_property
    def _attention(self) -> tuple[Gradients, Mapping] | None:
        """The gradients by rows through no pattern, and those by each pattern; None if the model's cannot be looked at."""
        layers = observed.attending_layers(self.model)
        if not layers:
            return None
        patterns = frozenset(observed.PATTERN.format(layer) for layer in layers)
        linear = gradients.by_rows(self.model, self.one.tokens, self.difference, self._sites, patterns)
        return linear, gradients.by_patterns(self.model, self.one.tokens, self.difference, layers)

    def qk(self, nodes: Nodes) -> Float[np.ndarray, " nodes"] | None:
        """The effects with the softmax of moved queries and keys computed anew; see `softmax_paths`."""
        if self._attention is None:
            return None
        linear, by_pattern = self._attention
        found = nodes.effects(linear)
        for first in range(0, len(nodes), TAPED_AT_ONCE):
            self.stop_if_asked()
            part = nodes.moves.part(first, first + TAPED_AT_ONCE)
            found[first : first + TAPED_AT_ONCE] += through_softmax(self.model, self.one.tokens, part, by_pattern)
        return found

    def edges(self, groups: Sequence[Nodes], order: Mapping[str, int]) -> list[tuple[tuple[int, int], tuple[int, int], float]]:
        """What the latents of SAEs add to the pre-activations of those of later SAEs: source, target, weight.

        Args:
            groups: latents of one SAE each; a node is the group's index and its own in it.
            order: hook points in the order in which the model computes them.
        """
        found = []
        for later, targets in enumerate(groups):
            earlier = [index for index, group in enumerate(groups) if _is_before(group.sae, targets.sae, order)]
            sites = dict.fromkeys(name for index in earlier for name in groups[index].moves.vectors)
            for first in range(0, len(targets) if earlier else 0, TAPED_AT_ONCE):
                self.stop_if_asked()
                part = targets.chosen(slice(first, first + TAPED_AT_ONCE))
                slopes = gradients.of_readings(self.model, self.one.tokens, _read(part), tuple(sites))
                for index in earlier:
                    weights = _weights(groups[index], slopes)
                    found += [
                        ((index, source), (later, first + target), float(weights[target, source]))
                        for target, source in zip(*np.nonzero(weights), strict=True)
                    ]
        return found


def _is_before(sae: InferenceSAE, other: InferenceSAE, order: Mapping[str, int]) -> bool:
    """Whether all that one SAE writes is computed before anything that the other reads."""
    assert sae.sites is not None
    assert other.sites is not None
    return max(order[name] for name in sae.sites.writes) < min(order[name] for name in other.sites.reads)


def _read(nodes: Nodes) -> Moves:
    """The encoder columns of latents, where they read."""
    assert nodes.sae.sites is not None
    columns = np.asarray(nodes.sae.W_enc)[:, nodes.latents].T.astype(np.float32)
    cuts = np.cumsum([width for _, width in nodes.sae.sites.read])[:-1]
    return Moves(nodes.positions, dict(zip(nodes.sae.sites.reads, np.split(columns, cuts, axis=1), strict=True)))


def _weights(sources: Nodes, slopes: Mapping[str, np.ndarray]) -> Float[np.ndarray, "targets sources"]:
    """Of each source on each target: the slope along the source's decoder row at its position, times its activation."""
    assert sources.sae.sites is not None
    rows = np.asarray(sources.sae.W_dec)[sources.latents] * sources.activations[:, None]
    cuts = np.cumsum([width for _, width in sources.sae.sites.write])[:-1]
    parts = zip(sources.sae.sites.writes, np.split(rows, cuts, axis=1), strict=True)
    products = [np.einsum("tnd,nd->tn", slopes[name][:, sources.positions], part) for name, part in parts]
    return np.sum(products, axis=0)
