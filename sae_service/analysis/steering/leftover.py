"""What an SAE leaves over: the losses with its reconstruction, and with its error, in place of the activations."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from sae_service.activations.model import LanguageModel
from sae_service.activations.splice import Reconstruct
from sae_service.analysis.prompts import Reading
from sae_service.analysis.steering.records import ErrorTerm
from sae_service.sae.inference import InferenceSAE


def error_term(
    model: LanguageModel, sae: InferenceSAE, prompts: Sequence[Reading], stop_if_asked: Callable[[], None]
) -> ErrorTerm | None:
    """Mean losses in nats over all positions that count; None if no prompt has a token after one. Raises Stopped."""
    assert sae.sites is not None
    found, n_read, squares = dict[str, float](), 0, np.zeros(2)

    def wrote(x: jax.Array) -> jax.Array:
        return sae.decode(sae.encode(x), x)

    ways: dict[str, Reconstruct] = {
        "spliced": lambda x, y: wrote(x),
        "error_added_back": lambda x, y: wrote(x) + (y - wrote(x)),
        "error_removed": lambda x, y: y - (y - wrote(x)),
        "reconstruction_removed": lambda x, y: y - wrote(x),
    }
    for one in prompts:
        tokens, keep, n = one.tokens[None], one.keep[None], int(one.counted.sum())
        if not n:
            continue
        n_read += n
        clean = model.losses(tokens)[0]
        losses = {"clean": clean}
        for name, way in ways.items():
            stop_if_asked()
            losses[name] = model.spliced_losses(tokens, keep, sae.sites, _noting(way, one.keep, squares, name))[0]
        for name, values in losses.items():
            found[name] = found.get(name, 0.0) + float(values[one.counted].sum(dtype=np.float64))
    if not n_read:
        return None
    means = {name: value / n_read for name, value in found.items()}
    return ErrorTerm(**means, positions=n_read, error_share=float(squares[0] / squares[1]) if squares[1] else 0.0)


def _noting(way: Reconstruct, keep: np.ndarray, squares: np.ndarray, name: str) -> Reconstruct:
    """A way that also sums the squared norms of errors and of rows, if it has the reconstruction in it."""

    def reconstruct(x: jax.Array, y: jax.Array) -> jax.Array:
        y_hat = way(x, y)
        if name == "spliced":
            wanted, got = (np.asarray(rows, np.float64)[keep] for rows in (y, y_hat))
            squares[:] += np.square(wanted - got).sum(), np.square(wanted).sum()
        return y_hat

    return reconstruct
