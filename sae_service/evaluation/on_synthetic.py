"""What a finished SAE is worth on synthetic activations, where the truth is known."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_service.activations import synthetic
from sae_service.evaluation import feature_recovery
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.reconstruction import reconstruction, reconstruction_sums
from sae_service.spec import JobSpec

QUANTILE_VALUES = 1 << 22
"""So many values are enough for a quantile."""


def evaluate_synthetic(job: JobSpec, saes: dict[str, tuple[str, InferenceSAE]]) -> dict[str, Any]:
    """Metrics of each SAE on rows that it was not trained on, by its name: reconstruction, sparsity and recovery.

    Beside each the same of a control with random directions, `random_...`.
    """
    assert job.stream.synthetic is not None
    strengths, x = synthetic.held_out(job.stream, job.evaluation.tokens)
    directions = np.asarray(synthetic.truth(job.stream.synthetic, job.stream.seed).directions)
    baselines = feature_recovery.baselines(directions, np.asarray(strengths), np.asarray(x))
    found: dict[str, Any] = {}
    for name, (_, sae) in saes.items():
        control = _measured(random_sae(sae, x), directions, strengths, x)
        of_control = {f"random_{metric}": value for metric, value in control.items()}
        found[name] = _measured(sae, directions, strengths, x) | baselines | of_control
    return found


def observer(job: JobSpec) -> Callable[[InferenceSAE], dict[str, Any]]:
    """What to record of an SAE while it trains: how alike its directions and the known ones are."""
    assert job.stream.synthetic is not None
    directions = np.asarray(synthetic.truth(job.stream.synthetic, job.stream.seed).directions)
    return lambda sae: feature_recovery.similarity(directions, np.asarray(sae.W_dec))


def random_sae(sae: InferenceSAE, x: jax.Array) -> InferenceSAE:
    """As many random directions, read by their transpose, with one threshold at which as many latents fire as in `sae`."""
    W_dec = jnp.asarray(feature_recovery.random_directions(*sae.W_dec.shape), jnp.float32)
    z = x @ W_dec.T
    share = jnp.mean(sae.encode(x) > 0)
    threshold = jnp.full(len(W_dec), jnp.maximum(jnp.quantile(z[: 1 + QUANTILE_VALUES // len(W_dec)], 1 - share), 0))
    return InferenceSAE(W_dec.T, jnp.zeros(len(W_dec)), W_dec, jnp.zeros(x.shape[1]), threshold)


def _measured(sae: InferenceSAE, directions: np.ndarray, strengths: jax.Array, x: jax.Array) -> dict[str, Any]:
    acts = sae.encode(x)
    x_hat = sae.decode(acts)
    fires, present = np.asarray(acts > 0), np.asarray(strengths > 0)
    learned = np.asarray(sae.W_dec)
    sums = {name: np.asarray(value, np.float64) for name, value in reconstruction_sums(x, x_hat, acts).items()}
    return {
        **reconstruction(len(x), sums),
        **feature_recovery.similarity(directions, learned),
        **feature_recovery.assignment(directions, learned),
        **feature_recovery.detection(directions, learned, present, fires),
        **feature_recovery.readout(directions, learned, np.asarray(strengths), np.asarray(acts)),
    }
