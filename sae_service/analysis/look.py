"""A look at what the latents of some SAEs do on text: the text, the pass over it, and the files made of it."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from sae_service.activations import passages as text
from sae_service.activations.model import LanguageModel
from sae_service.activations.passages import Passages
from sae_service.activations.tokenizer import strings
from sae_service.activations.tokens import Cursor
from sae_service.activations.unembedding import unembedding
from sae_service.analysis import results
from sae_service.analysis.columns import Maker
from sae_service.analysis.latents import LatentsPass, Sizes
from sae_service.readable import Roots
from sae_service.sae.inference import InferenceSAE
from sae_service.schema import SAES
from sae_service.spec import LatentsPart, StreamSpec
from sae_service.storage.objects import Content


def _sizes(part: LatentsPart) -> Sizes:
    return Sizes(part.best, part.per_quantile, part.passage_tokens, part.seed)


class Look:
    """A look at the latents of some SAEs on the held-out text of a stream.

    Attributes:
        passed: what has been seen so far.
    """

    def __init__(
        self, stream: StreamSpec, part: LatentsPart, model: LanguageModel, saes: dict[str, InferenceSAE],
        limits: dict[str, float] | None, roots: Roots,
    ) -> None:  # fmt: skip
        """Opens the text.

        Args:
            saes: on the host, with their sites.
            limits: the largest norm of a row that counts, by hook point; None if they are to be measured.
        """
        self._stream, self._part, self._model, self._saes = stream, part, model, saes
        sites = [sae.sites for sae in saes.values() if sae.sites is not None]
        names = [*(name for one in sites for name in one.hook_names), *(limits or {})]
        self._source = text.reading(stream, "held_out", model, tuple(dict.fromkeys(names)), roots)
        self._limits = text.norm_limits(self._source, stream.max_activation_norm_multiple) if limits is None else limits
        loaders = {name: partial(lambda sae: sae, sae) for name, sae in saes.items()}
        self.passed = LatentsPass(loaders, stream.context_size, _sizes(part))
        self._cursor, self._n_last = Cursor(), 0

    @property
    def wanted_tokens(self) -> int:
        """Tokens that are to be read, in whole rows of the model."""
        return self._n_prompts * self._stream.context_size

    @property
    def n_tokens(self) -> int:
        """Tokens that have been read, those that are left out too."""
        return self.passed.n_prompts * self._stream.context_size

    @property
    def _n_prompts(self) -> int:
        """Rows of the model that are to be read."""
        return self._part.tokens // self._stream.context_size

    def batches(self) -> Iterator[Passages]:
        """What is left of the text, batch by batch, each counted when it comes out.

        Raises:
            DataNotFound, InvalidSpec: it cannot be read, or nothing of it counts.
        """
        left = self._n_prompts - self.passed.n_prompts
        # It begins with the batch that was counted last: only a batch that is read says where it began.
        found = text.passages(self._source, self._cursor, left + self._n_last, self._limits) if left > 0 else iter(())
        for batch in islice(found, 1 if self._n_last else 0, None):
            self.passed.add(batch.tokens, batch.keep, batch.rows)
            self._cursor, self._n_last = batch.start, len(batch.tokens)
            yield batch
        if not self.passed.n_tokens:
            raise text.too_little(self._source)

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Copies of the arrays, and the values, from which it goes on."""
        found = {name: np.array(values, copy=True) for name, values in self.passed.state().items()}
        shapes = {name: [list(values.shape), values.dtype.name] for name, values in found.items()}
        return found, {"shapes": shapes, "cursor": self._cursor.model_dump(mode="json"), "n_last": self._n_last}

    def restore(self, state: dict[str, Any], values: dict[str, Any]) -> None:
        """Goes on from a state."""
        self.passed.restore({name: np.array(found, copy=True) for name, found in state.items()})
        self._cursor, self._n_last = Cursor.model_validate(values["cursor"]), values["n_last"]

    def files(self, alive: Callable[[], None]) -> Iterator[tuple[str, Content]]:
        """The files of all SAEs as those of a checkpoint, each below its SAE's name, made when it is their turn.

        Args:
            alive: called now and then.
        """
        maker = Maker(self.passed, _sizes(self._part), unembedding(self._model), alive)
        vocabulary = strings(self._model.tokenizer, self._model.n_vocab)
        for name in self._saes:
            found = results.to_files(maker.columns(name), vocabulary, self._about(name))
            for path in sorted(found):
                yield f"{SAES}{name}/{path}", found.pop(path)

    def _about(self, name: str) -> dict[str, Any]:
        """What is to be known of the columns of an SAE."""
        sites, (model, dataset) = self._saes[name].sites, self._stream.text_source
        assert sites is not None
        return {
            "name": name,
            "d_sae": int(self._saes[name].W_dec.shape[0]),
            "reads": sites.reads,
            "writes": sites.writes,
            "saes": list(self._saes),
            "n_tokens": self.passed.n_tokens,
            "n_prompts": self.passed.n_prompts,
            "context_size": self._stream.context_size,
            **{key: getattr(self._part, key) for key in LatentsPart.model_fields if key != "tokens"},
            "norm_limits": self._limits,
            "model": model.name,
            "dataset": dataset.model_dump(mode="json"),
        }

    @property
    def precision(self) -> dict[str, Any]:
        """In which precision matrix products run."""
        return {"model": self._model.precisions, "latents": "float32"}

    def figures(self) -> dict[str, dict[str, float]]:
        """Of each SAE how many latents fire on a token, and the share of those that have never fired."""
        n_tokens = max(self.passed.n_tokens, 1)
        return {
            name: {
                "l0": float(tally.counts.sum(dtype=np.int64)) / n_tokens,
                "never_fired_share": float((tally.counts == 0).mean()),
            }
            for name, tally in self.passed.tallies.items()
        }
