"""What a finished SAE is worth on synthetic activations, where the truth is known."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sae_service.activations import synthetic
from sae_service.errors import Stopped
from sae_service.evaluation import feature_recovery
from sae_service.evaluation.tally import Tally
from sae_service.sae.inference import InferenceSAE, Sites
from sae_service.sae.reconstruction import reconstruction, reconstruction_sums
from sae_service.spec import JobSpec

QUANTILE_VALUES = 1 << 22
"""So many values are enough for a quantile."""


class HeldOut:
    """The held-out rows of a job and the truth about them. Rows are drawn anew, a chunk at a time, whenever they are read."""

    def __init__(self, job: JobSpec, should_stop: Callable[[], bool]) -> None:
        """Draws the features."""
        assert job.stream.synthetic is not None
        self._job, self._should_stop = job, should_stop
        self.known = synthetic.truth(job.stream.synthetic, job.stream.seed)

    def chunks(self) -> Iterator[synthetic.HeldOutChunk]:
        """The rows, in chunks of one shape. Raises Stopped."""
        for chunk in synthetic.held_out(self._job.stream, self.known, self._job.evaluation.tokens):
            if self._should_stop():
                raise Stopped
            yield chunk

    def directions(self, hook_names: tuple[str, ...]) -> Float[np.ndarray, "n_features width"]:
        """The features' directions at hook points, side by side."""
        return np.asarray(self.known.at(hook_names, self.known.directions))

    def rows(self, hook_names: tuple[str, ...], n_rows: int) -> Float[Array, "rows width"]:
        """The first rows at hook points, side by side."""
        found: list[Array] = []
        for chunk in self.chunks():
            found.append(self.known.at(hook_names, chunk.x)[: chunk.n_rows])
            if sum(map(len, found)) >= n_rows:
                break
        return jnp.concatenate(found)[:n_rows]


def evaluate_synthetic(
    job: JobSpec, saes: Mapping[str, Callable[[], InferenceSAE]], should_stop: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Metrics of each SAE on rows that it was not trained on, by its name: reconstruction, sparsity and recovery.

    Its decoder rows are compared with the features' directions where it writes. Beside each figure the same of a control
    with random directions, `random_...`. One SAE at a time is loaded and lies on the device.

    Args:
        saes: what loads each SAE, for raw activations and with its sites, by the SAE's name.
        should_stop: asked before every chunk of rows.

    Raises:
        Stopped: it should stop before it has read all.
    """
    held_out = HeldOut(job, should_stop)
    baselines: dict[tuple[str, ...], dict[str, float]] = {}
    return {name: _with_control(held_out, baselines, load()) for name, load in saes.items()}


def observer(job: JobSpec) -> Callable[[InferenceSAE], dict[str, Any]]:
    """What to record of an SAE while it trains: how alike its directions and the known ones are."""
    held_out = HeldOut(job, lambda: False)
    return lambda sae: feature_recovery.similarity(held_out.directions(_sites(sae).writes), np.asarray(sae.W_dec))


def random_sae(sae: InferenceSAE, x: Float[Array, "rows d_read"], share: float) -> InferenceSAE:
    """As many random directions, read as they are written, with one threshold at which a share of latents fires on x."""
    n_latents, d_write = sae.W_dec.shape
    read, written = (
        jnp.asarray(feature_recovery.random_directions(n_latents, width), jnp.float32) for width in (x.shape[1], d_write)
    )
    threshold = jnp.full(n_latents, jnp.maximum(jnp.quantile(x @ read.T, 1 - share), 0))
    return InferenceSAE(read.T, jnp.zeros(n_latents), written, jnp.zeros(d_write), threshold, sites=sae.sites)


def _with_control(held_out: HeldOut, baselines: dict[tuple[str, ...], dict[str, float]], sae: InferenceSAE) -> dict[str, Any]:
    """The figures of one SAE, those of reading without an SAE (kept in `baselines`), and those of the control."""
    read = _sites(sae).reads
    if read not in baselines:
        baselines[read] = _baselines(held_out, read)
    measured = _measured(held_out, sae)
    x = held_out.rows(read, 1 + QUANTILE_VALUES // len(sae.W_dec))
    control = _measured(held_out, random_sae(sae, x, measured["l0"] / len(sae.W_dec)))
    return measured | baselines[read] | {f"random_{metric}": value for metric, value in control.items()}


def _baselines(held_out: HeldOut, read: tuple[str, ...]) -> dict[str, float]:
    found = feature_recovery.Baselines(held_out.directions(read))
    for chunk in held_out.chunks():
        x = held_out.known.at(read, chunk.x)
        found.add(np.asarray(chunk.strengths)[: chunk.n_rows], np.asarray(x)[: chunk.n_rows])
    return found.figures()


def _measured(held_out: HeldOut, sae: InferenceSAE) -> dict[str, Any]:
    sites, known = _sites(sae), held_out.known
    directions, learned = held_out.directions(sites.writes), np.asarray(sae.W_dec)
    best_latents = feature_recovery.best_latents(directions, learned)
    best_features = jnp.asarray(feature_recovery.best_features(directions, learned))
    widths = tuple(width for _, width in sites.write)
    tally, readout = Tally(), feature_recovery.Readout()
    on_device = jax.device_put(sae.replace(sites=None), jax.devices()[0])
    for chunk in held_out.chunks():
        x, y = (known.at(names, chunk.x) for names in (sites.reads, sites.writes))
        weights = jnp.asarray(np.arange(len(x)) < chunk.n_rows, jnp.float32)
        sums, acts = _sums(on_device, x, y, weights, chunk.strengths, best_features, jnp.asarray(best_latents), widths)
        tally.add(sums)
        readout.add(np.asarray(acts)[: chunk.n_rows], np.asarray(chunk.strengths)[: chunk.n_rows])
    return {
        **reconstruction(tally.sums, sites.writes),
        **feature_recovery.similarity(directions, learned),
        **feature_recovery.assignment(directions, learned),
        **feature_recovery.detection(tally.sums["both"], tally.sums["fired"], tally.sums["present"]),
        "readout_mse": readout.error(),
    }


@partial(jax.jit, static_argnames="widths")
def _sums(
    sae: InferenceSAE, x: Float[Array, "rows d_read"], y: Float[Array, "rows d_write"], weights: Float[Array, " rows"],
    strengths: Float[Array, "rows n_features"], best_features: Int[Array, " d_sae"], best_latents: Int[Array, " n_features"],
    widths: tuple[int, ...],
) -> tuple[dict[str, Any], Float[Array, "rows n_features"]]:  # fmt: skip
    """Sums over the rows of one chunk that count, and the acts of each feature's best latent."""
    acts = sae.encode(x)
    present = (strengths[:, best_features] > 0) & (weights > 0)[:, None]
    sums = reconstruction_sums(y, sae.decode(acts, x), acts, weights, widths)
    counts = {"both": jnp.sum(present & (acts > 0), axis=0), "present": jnp.sum(present, axis=0)}
    return sums | counts, acts[:, best_latents]


def _sites(sae: InferenceSAE) -> Sites:
    assert sae.sites is not None, "an SAE is measured where it reads and writes"
    return sae.sites
