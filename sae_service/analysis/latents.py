"""One pass over text in which the latents of any number of SAEs are looked at, in memory that does not grow with the text."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from sae_service.analysis.coactivity import Coactivity
from sae_service.analysis.correlation import Correlation
from sae_service.analysis.firing import firing, pairs_of
from sae_service.analysis.histogram import Histogram
from sae_service.analysis.kept import Kept, drawn
from sae_service.evaluation.held_out import on_device
from sae_service.sae.inference import InferenceSAE, SAEs

N_QUANTILES = 10
PRUNED_FROM = 1 << 16
"""So many passages are kept before it is looked which of them nobody wants any more."""


@dataclass(frozen=True)
class Sizes:
    """How much is remembered of each latent.

    Attributes:
        best: passages in which it fires most strongly.
        per_quantile: passages of each tenth, by their largest activation, of all passages in which it fires.
        passage_tokens: the longest passage; a longer row of the model is cut into such.
        seed: decides which passages of a tenth.
    """

    best: int = 20
    per_quantile: int = 5
    passage_tokens: int = 128
    seed: int = 0


class PassageStore:
    """The tokens of the passages that are wanted, each once, by number."""

    def __init__(self, passage_tokens: int) -> None:
        self._numbers = [np.zeros(0, np.int32)]
        self._tokens = [np.zeros((0, passage_tokens), np.int32)]
        self._n, self._after_pruning = 0, 0

    def add(self, numbers: Int[np.ndarray, " passages"], tokens: Int[np.ndarray, "passages passage_tokens"]) -> None:
        """Keeps passages, whose numbers are larger than all before."""
        self._numbers.append(numbers.astype(np.int32))
        self._tokens.append(tokens.astype(np.int32))
        self._n += len(numbers)

    @property
    def is_full(self) -> bool:
        """Whether it is time to prune."""
        return self._n > max(PRUNED_FROM, 2 * self._after_pruning)

    def pruned(self, wanted: Int[np.ndarray, " wanted"]) -> tuple[np.ndarray, np.ndarray]:
        """Lets go of all but the wanted ones. Returns the numbers, ascending, and the tokens of those."""
        numbers, tokens = np.concatenate(self._numbers), np.concatenate(self._tokens)
        chosen = np.isin(numbers, wanted)
        self._numbers, self._tokens = [numbers[chosen]], [tokens[chosen]]
        self._n = self._after_pruning = int(chosen.sum())
        return self._numbers[0], self._tokens[0]


class LatentTally:
    """What has been seen of the latents of one SAE."""

    def __init__(self, sae: InferenceSAE, sizes: Sizes) -> None:
        d_read, d_sae = sae.W_enc.shape
        self.sae, self._sizes = sae, sizes
        # The bypass and the sites have no part in the latents; without them fewer forms are compiled.
        self._encoder = jax.block_until_ready(on_device(sae.replace(sites=None, W_skip=None)))
        self.counts, self.largest = np.zeros(d_sae, np.int32), np.zeros(d_sae, np.float32)
        self.best, self.drawn = Kept(d_sae, sizes.best), Kept(d_sae, N_QUANTILES * sizes.per_quantile)
        self.histogram, self.coactivity = Histogram(d_sae), Coactivity(d_sae)
        self.correlation = Correlation(d_sae, d_read)

    def add(
        self, rows: Mapping[str, Float[np.ndarray, "rows _"]], passages: Int[np.ndarray, " rows"],
        positions: Int[np.ndarray, " rows"],
    ) -> None:  # fmt: skip
        """Counts rows, by hook point, with the passage of each and its place in it."""
        assert self.sae.sites is not None, "an SAE is looked at where it reads"
        x = np.concatenate([rows[name] for name in self.sae.sites.reads], axis=1)
        acts = firing(self._encoder, x)
        pairs = pairs_of(acts, passages, positions)
        peaks = pairs.peaks
        self.counts += np.bincount(acts.indices, minlength=len(self.counts)).astype(np.int32)
        np.maximum.at(self.largest, pairs.latents, peaks)
        self.best.add(pairs, peaks)
        self.drawn.add(pairs, drawn(self._sizes.seed, pairs.latents, pairs.passages))
        self.histogram.add(acts.indices, acts.data)
        self.coactivity.add(acts)
        self.correlation.add(acts, x)

    def state(self) -> dict[str, np.ndarray]:
        """All that is remembered."""
        own = {"counts": self.counts, "largest": self.largest}
        return own | {f"{part}.{name}": values for part in PARTS for name, values in getattr(self, part).state().items()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Goes on from a state."""
        self.counts, self.largest = state["counts"], state["largest"]
        for part in PARTS:
            getattr(self, part).restore(_below(state, part))


PARTS = ("best", "drawn", "histogram", "coactivity", "correlation")


def _below(state: Mapping[str, np.ndarray], part: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(f"{part}."): values for name, values in state.items() if name.startswith(f"{part}.")}


class LatentsPass:
    """The pass: the tallies of all SAEs, and the passages that any of them wants.

    Attributes:
        tallies: by the SAE's name.
        n_tokens: how many tokens have been counted; those that are left out are not.
        n_prompts: how many rows of the model have been read.
    """

    def __init__(self, saes: SAEs, context_size: int, sizes: Sizes) -> None:
        self._context_size, self._width = context_size, min(context_size, sizes.passage_tokens)
        self.tallies = {name: LatentTally(load(), sizes) for name, load in saes.items()}
        self._store = PassageStore(self._width)
        self.n_tokens = self.n_prompts = 0

    @property
    def _pieces(self) -> int:
        """Passages in a row of the model."""
        return -(-self._context_size // self._width)

    def add(
        self, tokens: Int[np.ndarray, "prompts context_size"], keep: Bool[np.ndarray, "prompts context_size"],
        rows: Mapping[str, Float[np.ndarray, "kept _"]],
    ) -> None:  # fmt: skip
        """Counts a batch of rows of the model, of whose positions those in `keep` have activations."""
        first, n_passages = self.n_prompts * self._pieces, len(tokens) * self._pieces
        missing = self._pieces * self._width - self._context_size
        cut = np.pad(tokens, ((0, 0), (0, missing)), constant_values=-1).reshape(n_passages, self._width)
        self._store.add(np.arange(first, first + n_passages), cut)
        prompts, places = np.nonzero(keep)
        passages = first + prompts * self._pieces + places // self._width
        for tally in self.tallies.values():
            tally.add(rows, passages, places % self._width)
        self.n_prompts += len(tokens)
        self.n_tokens += len(prompts)
        if self._store.is_full:
            self.passages()

    def passages(self) -> tuple[Int[np.ndarray, " passages"], Int[np.ndarray, "passages passage_tokens"]]:
        """The numbers of the passages that are wanted, ascending, and their tokens; -1 behind the end of a row."""
        wanted = [kept.passages() for tally in self.tallies.values() for kept in (tally.best, tally.drawn)]
        return self._store.pruned(np.unique(np.concatenate(wanted)))

    def state(self) -> dict[str, np.ndarray]:
        """All that is remembered, as arrays by name; none of them has items of 64 bits, which JAX does not keep."""
        found = {f"{name}/{part}": values for name, tally in self.tallies.items() for part, values in tally.state().items()}
        numbers, tokens = self.passages()
        return found | {"passages": numbers, "tokens": tokens, "seen": np.asarray([self.n_prompts, self.n_tokens], np.int32)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Goes on from a state."""
        for name, tally in self.tallies.items():
            tally.restore({part.removeprefix(f"{name}/"): values for part, values in state.items() if part.startswith(f"{name}/")})
        self._store.add(state["passages"], state["tokens"])
        self.n_prompts, self.n_tokens = map(int, state["seen"])
