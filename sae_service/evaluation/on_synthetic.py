"""How good an SAE is on synthetic activations, where the truth is known."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sae_service import hosts, tracing
from sae_service.activations import synthetic
from sae_service.errors import Stopped
from sae_service.evaluation import feature_recovery
from sae_service.evaluation.held_out import ShouldStop, on_device
from sae_service.evaluation.tally import Tally
from sae_service.numerics import exact
from sae_service.sae.inference import InferenceSAE, SAEs
from sae_service.sae.reconstruction import reconstruction, reconstruction_sums
from sae_service.sae.sites import Sites
from sae_service.spec import JobSpec

QUANTILE_VALUES = 1 << 22
"""So many values are enough for a quantile."""


class HeldOutRows:
    """The held-out rows of a job and the truth about them. Rows are drawn anew, a chunk at a time, whenever they are read."""

    def __init__(self, job: JobSpec) -> None:
        """Draws the features."""
        assert job.stream.synthetic is not None
        self._job = job
        self.known = synthetic.truth(job.stream.synthetic, job.stream.seed)
        self._baselines: dict[tuple[str, ...], dict[str, float]] = {}

    @tracing.traced("evaluate")
    def evaluate(self, saes: SAEs, should_stop: ShouldStop = lambda: False) -> dict[str, Any]:
        """Metrics of each SAE, by its name: reconstruction, sparsity and recovery.

        Its decoder rows are compared with the features' directions where it writes. Beside each figure the same of a
        control with random directions, `random_...`. One SAE at a time is loaded and lies on the device.

        Args:
            saes: what loads each SAE, for raw activations and with its sites, by the SAE's name.
            should_stop: asked before every chunk of rows.

        Raises:
            Stopped: it should stop before it has read all.
        """
        return {name: self._with_control(load(), should_stop) for name, load in saes.items()}

    def observe(self, sae: InferenceSAE) -> dict[str, Any]:
        """What to record of an SAE while it trains: how alike its directions and the known ones are."""
        return feature_recovery.similarity(self.directions(_sites(sae).writes), hosts.fetched(sae.W_dec))

    def directions(self, hook_names: tuple[str, ...]) -> Float[np.ndarray, "n_features width"]:
        """The features' directions at hook points, side by side."""
        return np.asarray(self.known.at(hook_names, self.known.directions))

    def _chunks(self, should_stop: ShouldStop) -> Iterator[synthetic.HeldOutChunk]:
        """The rows, in chunks of one shape. Raises Stopped."""
        for chunk in synthetic.held_out(self._job.stream, self.known, self._job.evaluation.tokens):
            if should_stop():
                raise Stopped
            yield chunk

    def _rows(self, hook_names: tuple[str, ...], n_rows: int, should_stop: ShouldStop) -> Float[Array, "rows width"]:
        """The first rows at hook points, side by side."""
        found: list[Array] = []
        for chunk in self._chunks(should_stop):
            found.append(self.known.at(hook_names, chunk.x)[: chunk.n_rows])
            if sum(map(len, found)) >= n_rows:
                break
        return jnp.concatenate(found)[:n_rows]

    def _with_control(self, sae: InferenceSAE, should_stop: ShouldStop) -> dict[str, Any]:
        """The figures of one SAE, those of reading without an SAE, and those of the control."""
        read = _sites(sae).reads
        if read not in self._baselines:
            self._baselines[read] = self._read_without_an_sae(read, should_stop)
        measured = self._measured(sae, should_stop)
        x = self._rows(read, 1 + QUANTILE_VALUES // len(sae.W_dec), should_stop)
        control = self._measured(random_sae(sae, x, measured["l0"] / len(sae.W_dec)), should_stop)
        return measured | self._baselines[read] | {f"random_{metric}": value for metric, value in control.items()}

    def _read_without_an_sae(self, read: tuple[str, ...], should_stop: ShouldStop) -> dict[str, float]:
        found = feature_recovery.Baselines(self.directions(read))
        for chunk in self._chunks(should_stop):
            x = self.known.at(read, chunk.x)
            found.add(np.asarray(chunk.strengths)[: chunk.n_rows], np.asarray(x)[: chunk.n_rows])
        return found.figures()

    def _measured(self, sae: InferenceSAE, should_stop: ShouldStop) -> dict[str, Any]:
        sites = _sites(sae)
        directions, learned = self.directions(sites.writes), np.asarray(sae.W_dec)
        best_latents = feature_recovery.best_latents(directions, learned)
        best_features = jnp.asarray(feature_recovery.best_features(directions, learned))
        widths = tuple(width for _, width in sites.write)
        tally, readout = Tally(), feature_recovery.Readout()
        placed = on_device(sae.replace(sites=None))
        for chunk in self._chunks(should_stop):
            x, y = (self.known.at(names, chunk.x) for names in (sites.reads, sites.writes))
            weights = jnp.asarray(np.arange(len(x)) < chunk.n_rows, jnp.float32)
            sums, acts = _sums(placed, x, y, weights, chunk.strengths, best_features, jnp.asarray(best_latents), widths)
            tally.add(sums)
            readout.add(np.asarray(acts)[: chunk.n_rows], np.asarray(chunk.strengths)[: chunk.n_rows])
        return {
            **reconstruction(tally.sums, sites.writes),
            **feature_recovery.similarity(directions, learned),
            **feature_recovery.assignment(directions, learned),
            **feature_recovery.detection(tally.sums["both"], tally.sums["fired"], tally.sums["present"]),
            "readout_mse": readout.error(),
        }


def random_sae(sae: InferenceSAE, x: Float[Array, "rows d_read"], share: float) -> InferenceSAE:
    """As many random directions, read as they are written, with one threshold at which a share of latents fires on x."""
    n_latents, d_write = sae.W_dec.shape
    read, written = (
        jnp.asarray(feature_recovery.random_directions(n_latents, width), jnp.float32) for width in (x.shape[1], d_write)
    )
    threshold = jnp.full(n_latents, jnp.maximum(jnp.quantile(exact(x, read.T), 1 - share), 0))
    return InferenceSAE(read.T, jnp.zeros(n_latents), written, jnp.zeros(d_write), threshold, sites=sae.sites)


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
