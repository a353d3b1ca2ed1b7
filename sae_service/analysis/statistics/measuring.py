"""The pass over text that measures a model, batch by batch, and the state from which it goes on."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from sae_service.activations import observed
from sae_service.activations import passages as text
from sae_service.activations.model import LanguageModel
from sae_service.activations.tokenizer import separator
from sae_service.activations.tokens import Cursor, Prompts
from sae_service.analysis.statistics.attention import AttentionTally
from sae_service.analysis.statistics.cuts import Cuts
from sae_service.analysis.statistics.hook_tally import HookTally
from sae_service.analysis.statistics.medians import medians_of
from sae_service.analysis.statistics.norms import NormTally, group_starts, norms_of
from sae_service.readable import Roots
from sae_service.spec import StatisticsSpec, StreamSpec

SPECIAL = ("bos", "eos", "pad")
OUTLIER_MULTIPLE = 10.0
"""A row is an outlier beyond so many times the median norm, as `evaluation.outliers` has it."""


def residual_points(n_layers: int) -> list[str]:
    """The residual stream before the first block and after each."""
    return ["blocks.0.hook_resid_pre", *(f"blocks.{layer}.hook_resid_post" for layer in range(n_layers))]


def written_points(n_layers: int) -> list[str]:
    """What the attention and the MLP of each block write."""
    return [f"blocks.{layer}.{site}" for layer in range(n_layers) for site in ("hook_attn_out", "hook_mlp_out")]


@dataclass
class Measured:
    """What has been seen so far.

    Attributes:
        medians: the median norm of the first rows of each hook point, as training takes it for its limits.
        norms: by hook point: those that are measured, and the residual stream, attention and MLP of each layer.
        hooks: those that are measured.
        n_prompts: rows of the model that have been read.
    """

    medians: dict[str, float]
    norms: dict[str, NormTally]
    hooks: dict[str, HookTally]
    attention: AttentionTally
    cuts: Cuts
    n_prompts: int = 0

    def parts(self) -> dict[str, Any]:
        """All that has a state, by name."""
        tallies = {f"norms/{name}": tally for name, tally in self.norms.items()}
        tallies |= {f"hooks/{name}": tally for name, tally in self.hooks.items()}
        return tallies | {"attention": self.attention, "cuts": self.cuts}


class Measuring:
    """The measuring of a model, as a `Course` goes it."""

    def __init__(
        self, stream: StreamSpec, job: StatisticsSpec, model: LanguageModel, widths: Mapping[str, int], roots: Roots,
        alive: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Opens the text.

        Args:
            widths: of the rows of the hook points that are measured.
            alive: called now and then.

        Raises:
            DataNotFound, InvalidSpec: it cannot be read, or nothing of it counts.
        """
        self._stream, self._job, self._model, self._alive = stream, job, model, alive
        self.source = text.reading(text.whole(stream), "held_out", model, tuple(widths), roots)
        n_layers = model.bridge.cfg.n_layers
        self.residual = observed.fit(model, residual_points(n_layers))
        points = dict.fromkeys((*self.residual, *observed.fit(model, written_points(n_layers)), *widths))
        special = model.excluded_tokens((*SPECIAL, *stream.exclude))
        starts, grouped = group_starts(stream.context_size), {*self.residual, *widths}
        medians = medians_of(self.source, list(widths), alive)
        start = None if model.tokenizer is None else separator(model.tokenizer)
        after_blocks = [name for name in self.residual if name.endswith("resid_post")]
        self.found = Measured(
            medians,
            {name: NormTally(stream.context_size, starts if name in grouped else [0], special) for name in points},
            {name: HookTally(width, stream.context_size, OUTLIER_MULTIPLE * medians[name]) for name, width in widths.items()},
            AttentionTally(model, observed.attending_layers(model) if job.attention_tokens else [], start),
            Cuts(model, after_blocks, stream.context_size, job.cut_positions, stream.prompts * stream.context_size),
        )
        self._cursor, self._n_last = Cursor(), 0

    @property
    def wanted_tokens(self) -> int:
        """Tokens that are to be read, in whole rows of the model."""
        return self._job.total_tokens

    @property
    def n_tokens(self) -> int:
        """Tokens that have been read, those that are left out too."""
        return self.found.n_prompts * self._stream.context_size

    def batches(self) -> Iterator[Prompts]:
        """What is left of the text, batch by batch, each measured when it comes out.

        Raises:
            DataNotFound, InvalidSpec: it cannot be read.
        """
        left = self._job.tokens // self._stream.context_size - self.found.n_prompts
        if left <= 0:
            return
        # It begins with the batch that was measured last: only a batch that is read says where it began.
        skip = self._n_last
        for prompts, at in self.source.prompts(self._cursor):
            if skip:
                skip = 0
                continue
            cut = Prompts(prompts.tokens[:left], prompts.trained[:left])
            self._measure(cut.tokens, self._within(cut))
            self._cursor, self._n_last = at, len(cut.tokens)
            self.found.n_prompts += len(cut.tokens)
            left -= len(cut.tokens)
            yield cut
            if left <= 0:
                return

    def _within(self, prompts: Prompts) -> Bool[np.ndarray, "prompts positions"]:
        """The positions that count: neither excluded nor, where the stream has a limit, too long a row at any hook point."""
        keep, multiple = prompts.trained.copy(), self._stream.max_activation_norm_multiple
        if multiple is not None:

            def look(name: str, rows: np.ndarray) -> None:
                self._alive()
                keep[...] &= norms_of(rows) <= multiple * self.found.medians[name]

            observed.rows(self._model, prompts.tokens, list(self.found.hooks), look)
        return keep

    def _measure(self, tokens: np.ndarray, keep: Bool[np.ndarray, "prompts positions"]) -> None:
        found, first = self.found, self.found.n_prompts
        chosen = found.cuts.chosen(keep, first)
        full: dict[str, Float[np.ndarray, "places d_model"]] = {}

        def look(name: str, rows: np.ndarray) -> None:
            self._alive()
            norms = norms_of(rows)
            is_finite = np.isfinite(norms)
            found.norms[name].add(norms, keep, tokens, is_finite)
            if name in found.hooks:
                found.hooks[name].add(rows, norms, keep, tokens, is_finite)
            if name in self.residual:
                full[name] = rows[chosen[:, 0], chosen[:, 1]]

        observed.rows(self._model, tokens, list(found.norms), look)
        if len(chosen):
            found.cuts.add(tokens, chosen, first, full, self._alive)
        # As many whole rows as there are still to be looked at.
        n_attended = min(len(tokens), -(-self._job.attention_tokens // self._stream.context_size) - first)
        if n_attended > 0 and found.attention.layers:
            found.attention.add(tokens[:n_attended], keep[:n_attended], self._alive)

    def figures(self) -> dict[str, dict[str, float]]:
        """What is told on the way."""
        last = self.residual[-1] if self.residual else next(iter(self.found.norms))
        return {"model": {"mean_norm": self.found.norms[last].mean}}

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Copies of the arrays, and the values, from which it goes on."""
        found = {
            f"{part}/{name}": np.array(values, copy=True)
            for part, tally in self.found.parts().items() for name, values in tally.state().items()
        }  # fmt: skip
        shapes = {name: [list(values.shape), values.dtype.name] for name, values in found.items()}
        place = {"cursor": self._cursor.model_dump(mode="json"), "n_last": self._n_last, "n_prompts": self.found.n_prompts}
        return found, {"shapes": shapes, **place}

    def restore(self, state: dict[str, Any], values: dict[str, Any]) -> None:
        """Goes on from a state."""
        for part, tally in self.found.parts().items():
            own = {name.removeprefix(f"{part}/"): found for name, found in state.items() if name.startswith(f"{part}/")}
            tally.restore({name: np.array(found, copy=True) for name, found in own.items()})
        self._cursor, self._n_last = Cursor.model_validate(values["cursor"]), values["n_last"]
        self.found.n_prompts = values["n_prompts"]
