"""How good an SAE is, on held-out text: reconstruction, sparsity and what it does to the model's loss."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sae_service import tracing
from sae_service.activations.documents import no_text
from sae_service.activations.model import LanguageModel, keep_mask
from sae_service.activations.norms import kept_norms
from sae_service.activations.text import check_splits
from sae_service.activations.tokens import Cursor, PackedTokens, all_left_out
from sae_service.errors import DataNotFound, InvalidSpec, Stopped
from sae_service.evaluation import outliers
from sae_service.evaluation.held_out import ShouldStop, on_device
from sae_service.evaluation.tally import Tally
from sae_service.sae.inference import InferenceSAE, SAEs
from sae_service.sae.reconstruction import reconstruction, reconstruction_sums
from sae_service.sae.sites import Sites
from sae_service.spec import StreamSpec, fields


@partial(jax.jit, static_argnames="widths")
def reconstructed(
    sae: InferenceSAE, x: Float[Array, "rows d_read"], y: Float[Array, "rows d_write"], weights: Float[Array, " rows"],
    widths: tuple[int, ...], limits: Float[Array, " n_write"],
) -> tuple[Float[Array, "rows d_write"], dict[str, Any], Float[Array, "rows n_write"]]:  # fmt: skip
    """What the SAE writes for each row, the sums over those of weight 1, see `reconstruction_sums`, and the norms of y.

    A row whose norm is beyond the limit at one of the hook points is left as it is, and out of the sums.
    """
    # Where a model overflows it does so at the tokens that are left out, and 0 times infinity is not 0.
    x, y = (jnp.where(weights[:, None] > 0, rows.astype(jnp.float32), 0) for rows in (x, y))
    norms = outliers.norms_by_site(y, widths)
    fits = jnp.all(norms <= limits, axis=1)
    acts = sae.encode(x)
    y_hat = jnp.where(fits[:, None], sae.decode(acts, x), y)
    return y_hat, reconstruction_sums(y, y_hat, acts, weights * fits, widths), norms


@dataclass(frozen=True)
class Batch:
    """Rows of tokens, and which of their positions count. The first `n_rows` are text; the others fill the batch up."""

    tokens: Int[np.ndarray, "prompts context_size"]
    keep: Bool[np.ndarray, "prompts context_size"]
    n_rows: int

    def counted(self, losses: Float[np.ndarray, "prompts predicted"]) -> float:
        """The sum of the losses where neither a position's own token nor the next one is excluded."""
        return float(losses[self._counts].sum(dtype=np.float64))

    @property
    def n_predicted(self) -> int:
        """How many losses count."""
        return int(self._counts.sum())

    @property
    def _counts(self) -> Bool[np.ndarray, "prompts predicted"]:
        return self.keep[:, :-1] & self.keep[:, 1:]


def held_out_batches(stream: StreamSpec, n_tokens: int, model: LanguageModel) -> Iterator[Batch]:
    """Packed held-out tokens until there are `n_tokens` of them, or no more text.

    All batches have the same shape: the last is filled up with rows of which nothing is kept.

    Raises:
        InvalidSpec: there is not one row of it.
        DataNotFound: it cannot be read.
    """
    excluded, left = model.excluded_tokens(stream.exclude), n_tokens // stream.context_size
    n_prompts = max(1, min(stream.prompts, left))
    packed = PackedTokens(stream.text_source[1], "held_out", model, stream.context_size, n_prompts, False, model.roots)
    is_empty = True
    for prompts, _ in packed.read(Cursor()):
        is_empty = False
        tokens = prompts.tokens[:left]
        keep = keep_mask(tokens, excluded) & prompts.trained[:left]
        missing = ((0, n_prompts - len(tokens)), (0, 0))
        yield Batch(np.pad(tokens, missing), np.pad(keep, missing, constant_values=False), len(tokens))
        left -= len(tokens)
        if left <= 0:
            return
    if is_empty:
        raise _too_little(packed)


def _too_little(packed: PackedTokens) -> DataNotFound | InvalidSpec:
    """What to say of held-out text that does not fill one row."""
    spec, found, length = packed.spec, packed.documents, packed.context_size
    if not found.n_seen:
        return no_text(spec, found, spec.held_out_split or spec.split)
    if spec.held_out_split is not None:
        where = f"split {spec.held_out_split!r} of {spec.path}, which is held out,"
        hint = "Name a split with more text, or lower context_size."
        return InvalidSpec(f"{where} is shorter than one row of {length} tokens.", fields.HELD_OUT_SPLIT, hint)
    return InvalidSpec(
        f"of the {found.n_seen} documents in split {spec.split!r} of {spec.path} a share of {spec.held_out_share} holds out "
        f"{found.n_chosen}; that is less than one row of {length} tokens.",
        "/stream/dataset/held_out_share",
        "Raise held_out_share (at most .5), name a held_out_split, or divide the text into more documents.",
    )


class HeldOutText:
    """The held-out text, and the losses that no SAE changes, each computed once. All of it lies on the host.

    `n_tokens` is how many tokens there are, excluded ones too.
    """

    def __init__(
        self, stream: StreamSpec, n_tokens: int, model: LanguageModel, should_stop: ShouldStop = lambda: False
    ) -> None:
        """Reads the text.

        Args:
            stream: its held-out text, context_size, prompts and excluded tokens are used.

        Raises:
            InvalidSpec: there is not one row of it, nothing of it is to be measured, or it is trained on.
            DataNotFound: it cannot be read.
            Stopped: it should stop before all has been read.
        """
        check_splits(stream.text_source[1])
        self._model, self._batches = model, list[Batch]()
        for batch in held_out_batches(stream, n_tokens, model):
            if should_stop():
                raise Stopped
            self._batches.append(batch)
        self.n_tokens = sum(batch.n_rows for batch in self._batches) * stream.context_size
        self._n_predicted = sum(batch.n_predicted for batch in self._batches)
        self._zeroed: dict[tuple[str, ...], float] = {}
        self._multiple = stream.max_activation_norm_multiple
        self._medians: dict[str, float] = {}
        if not self._n_predicted:
            raise all_left_out(f"of the {self.n_tokens} held-out tokens all are left out.", stream.text_source[1])

    @tracing.traced("evaluate")
    def evaluate(self, saes: SAEs, should_stop: ShouldStop = lambda: False) -> dict[str, Any]:
        """Metrics of each SAE, by its name.

        A position counts for the cross-entropies if neither its own token nor the next one is excluded; excluded
        positions are left unspliced. One SAE at a time is loaded and lies on the device.

        Args:
            saes: what loads each SAE, for raw activations and with its sites, by the SAE's name.
            should_stop: asked before every forward pass.

        Raises:
            Stopped: it should stop before it has read all.
        """
        return {name: self._measured(on_device(load()), should_stop) for name, load in saes.items()}

    def _measured(self, sae: InferenceSAE, should_stop: ShouldStop) -> dict[str, Any]:
        """The metrics of one SAE: those of `reconstruction`, and those of the model's loss:

        ce_loss, _sae, _zero: mean next-token loss in nats, clean, spliced, zeroed. delta_ce_loss: sae - clean.
        ce_loss_recovered: (zero - sae) / (zero - clean). All of them are about every hook point that the SAE writes.

        And those of `outliers.figures`.
        """
        sites = sae.sites
        assert sites is not None, "an SAE is measured where it reads and writes"
        tally, norms = Tally(), list[np.ndarray]()
        limits = self._norm_limits(sites.writes, should_stop)
        clean, zero = self._loss_with_zeros((), should_stop), self._loss_with_zeros(sites.writes, should_stop)
        spliced = self._mean(partial(_spliced, self._model, sae, sites, tally, norms, limits), should_stop)
        return {
            "ce_loss": clean,
            "ce_loss_sae": spliced,
            "ce_loss_zero": zero,
            "delta_ce_loss": spliced - clean,
            "ce_loss_recovered": (zero - spliced) / (zero - clean) if zero != clean else math.nan,
            **reconstruction(tally.sums, sites.writes),
            **outliers.figures(np.concatenate(norms)),
        }

    def _norm_limits(self, hook_names: tuple[str, ...], should_stop: ShouldStop) -> Float[Array, " n_write"]:
        """The largest norm of a row at each hook point, by the median over all batches; infinite without a limit."""
        if self._multiple is None:
            return jnp.full(len(hook_names), jnp.inf)
        unknown = tuple(name for name in hook_names if name not in self._medians)
        norms = {name: list[np.ndarray]() for name in unknown}
        for batch in self._batches if unknown else ():
            if should_stop():
                raise Stopped
            for name, rows in self._model.activations(batch.tokens, unknown).items():
                norms[name].append(kept_norms(rows, batch.keep))
        self._medians |= {name: float(np.median(np.concatenate(found))) for name, found in norms.items()}
        return jnp.asarray([self._multiple * self._medians[name] for name in hook_names], jnp.float32)

    def _loss_with_zeros(self, hook_names: tuple[str, ...], should_stop: ShouldStop) -> float:
        """The model's loss with zeros at all these hook points."""
        if hook_names not in self._zeroed:
            self._zeroed[hook_names] = self._mean(
                lambda batch: self._model.zeroed_losses(batch.tokens, batch.keep, hook_names), should_stop
            )
        return self._zeroed[hook_names]

    def _mean(self, losses: Callable[[Batch], Float[np.ndarray, "prompts predicted"]], should_stop: ShouldStop) -> float:
        """The mean of the losses that count, over all batches. Raises Stopped."""
        total = 0.0
        for batch in self._batches:
            if should_stop():
                raise Stopped
            total += batch.counted(losses(batch))
        return total / self._n_predicted


def _spliced(
    model: LanguageModel, sae: InferenceSAE, sites: Sites, tally: Tally, norms: list[np.ndarray],
    limits: Float[Array, " n_write"], batch: Batch,
) -> Float[np.ndarray, "prompts predicted"]:
    """The losses of one batch with the SAE spliced in, which also counts in the tally."""
    anywhere, weights = sae.replace(sites=None), jnp.asarray(batch.keep.ravel(), jnp.float32)
    widths = tuple(width for _, width in sites.write)

    def reconstruct(x: jax.Array, y: jax.Array) -> jax.Array:
        x, y = jax.device_put((x, y), sae.b_dec.sharding)
        # Without its sites, or those of one structure at several hook points would be compiled for each.
        y_hat, sums, found = reconstructed(anywhere, x, y, weights, widths, limits)
        tally.add(sums)
        norms.append(np.asarray(found)[batch.keep.ravel()])
        return jax.device_put(y_hat, jax.local_devices()[0])

    return model.spliced_losses(batch.tokens, batch.keep, sites, reconstruct)
