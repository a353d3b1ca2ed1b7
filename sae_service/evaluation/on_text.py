"""What a finished SAE is worth, on held-out text: reconstruction, sparsity and what it does to the model's loss."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sae_service.activations.model import LanguageModel, Replace, keep_mask
from sae_service.activations.tokens import Cursor, PackedTokens
from sae_service.activations.torch_to_jax import to_jax, to_torch
from sae_service.errors import DataNotFound, Stopped
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.reconstruction import reconstruction, reconstruction_sums
from sae_service.spec import StreamSpec


@jax.jit
def reconstructed(sae: InferenceSAE, x: Float[Array, "rows d_in"]) -> tuple[Array, dict[str, Array]]:
    """The reconstruction, and sums over the rows."""
    x = x.astype(jnp.float32)
    acts = sae.encode(x)
    x_hat = sae.decode(acts)
    return x_hat, reconstruction_sums(x, x_hat, acts)


@dataclass
class Tally:
    """Sums over the whole evaluation set, in float64 on the host."""

    n_rows: int = 0
    n_predicted: int = 0
    sums: dict[str, Any] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)

    def add(self, n_rows: int, sums: dict[str, Any]) -> None:
        """Counts the rows of one batch."""
        self.n_rows += n_rows
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0) + np.asarray(value, np.float64)

    def add_losses(self, counted: Any, losses: dict[str, Any]) -> None:
        """Counts the token losses of one batch at the positions `counted`."""
        self.n_predicted += int(counted.sum())
        for name, values in losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + float(values[counted].double().sum())


def held_out_batches(
    stream: StreamSpec, n_tokens: int, model: LanguageModel
) -> Iterator[Int[np.ndarray, "prompts context_size"]]:
    """Packed held-out tokens until there are `n_tokens` of them, or no more text."""
    packed = PackedTokens(
        stream.text_source[1], "held_out", model.encode, model.bos, stream.context_size, stream.prompts, repeat=False
    )
    left = n_tokens // stream.context_size
    for tokens, _ in packed.read(Cursor()):
        if left <= 0:
            return
        yield tokens[:left]
        left -= len(tokens)


def evaluate(
    stream: StreamSpec, n_tokens: int, model: LanguageModel, saes: dict[str, tuple[str, InferenceSAE]],
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:  # fmt: skip
    """Metrics of each SAE on held-out text, by its name.

    A position counts for the cross-entropies if neither its own token nor the next one is excluded; excluded
    positions are left unspliced.

    Args:
        stream: its held-out text, context_size and excluded tokens are used.
        saes: hook name and SAE, for raw activations, by the SAE's name.

    Raises:
        DataNotFound: there is not one row of held-out text.
        Stopped: it should stop before it has read all.
    """
    excluded = model.excluded_tokens(stream.exclude)
    tallies = {name: Tally() for name in saes}
    for tokens in held_out_batches(stream, n_tokens, model):
        if should_stop():
            raise Stopped
        keep = to_torch(jnp.asarray(keep_mask(tokens, excluded))).to(model.device)
        clean = model.token_losses(tokens)
        counted = keep[:, :-1] & keep[:, 1:]
        zeroed: dict[str, Any] = {}
        for name, (hook_name, sae) in saes.items():
            if hook_name not in zeroed:
                zeroed[hook_name] = model.token_losses(tokens, {hook_name: _spliced(keep, lambda rows: rows * 0)})
            spliced = model.token_losses(tokens, {hook_name: _spliced(keep, _measuring(sae, tallies[name]))})
            losses = {"ce_loss": clean, "ce_loss_sae": spliced, "ce_loss_zero": zeroed[hook_name]}
            tallies[name].add_losses(counted, losses)
    if not all(tally.n_predicted for tally in tallies.values()):
        raise DataNotFound(
            f"the held-out text is shorter than one row of {stream.context_size} tokens.",
            param="/stream/dataset",
            hint="Name a held_out_split or raise held_out_share.",
        )
    return {name: summary(tally) for name, tally in tallies.items()}


def _spliced(keep: Any, function: Replace) -> Replace:
    """Replaces the kept positions of a hook point by `function` of their rows."""

    def replace(tensor: Any) -> Any:
        result = tensor.clone()
        result[keep] = function(tensor[keep]).to(tensor.dtype)
        return result

    return replace


def _measuring(sae: InferenceSAE, tally: Tally) -> Replace:
    """The SAE as a function of torch rows that also counts what it sees."""

    def reconstruct(rows: Any) -> Any:
        x_hat, sums = reconstructed(sae, to_jax(rows))
        tally.add(len(rows), jax.device_get(sums))
        return to_torch(x_hat)

    return reconstruct


def summary(tally: Tally) -> dict[str, Any]:
    """The metrics, from the sums over the whole set: those of `reconstruction`, and those of the model's loss:

    ce_loss, _sae, _zero: mean next-token loss in nats, clean, spliced, zeroed. delta_ce_loss: sae - clean.
    ce_loss_recovered: (zero - sae) / (zero - clean).
    """
    losses = {name: total / tally.n_predicted for name, total in tally.losses.items()}
    clean, spliced, zero = losses["ce_loss"], losses["ce_loss_sae"], losses["ce_loss_zero"]
    return {
        **losses,
        "delta_ce_loss": spliced - clean,
        "ce_loss_recovered": (zero - spliced) / (zero - clean) if zero != clean else math.nan,
        **reconstruction(tally.n_rows, tally.sums),
    }


