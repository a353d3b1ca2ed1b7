"""What a finished SAE is worth on synthetic activations, where the truth is known."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sae_service import recovery
from sae_service.activations import synthetic
from sae_service.evaluation import reconstruction, reconstruction_sums
from sae_service.sae import InferenceSAE
from sae_service.spec import JobSpec


def evaluate_synthetic(job: JobSpec, saes: dict[str, tuple[str, InferenceSAE]]) -> dict[str, Any]:
    """Metrics of each SAE on rows that it was not trained on, by its name: reconstruction, sparsity and recovery."""
    assert job.stream.synthetic is not None
    strengths, x = synthetic.held_out(job.stream, job.evaluation.tokens)
    directions = np.asarray(synthetic.truth(job.stream.synthetic, job.stream.seed).directions)
    return {name: _measured(sae, directions, strengths, x) for name, (_, sae) in saes.items()}


def observer(job: JobSpec) -> Callable[[InferenceSAE], dict[str, Any]]:
    """What to record of an SAE while it trains: how alike its directions and the known ones are."""
    assert job.stream.synthetic is not None
    directions = np.asarray(synthetic.truth(job.stream.synthetic, job.stream.seed).directions)
    return lambda sae: recovery.similarity(directions, np.asarray(sae.W_dec))


def _measured(sae: InferenceSAE, directions: np.ndarray[Any, Any], strengths: jax.Array, x: jax.Array) -> dict[str, Any]:
    acts = sae.encode(x)
    x_hat = sae.decode(acts)
    fires, present = np.asarray(acts > 0), np.asarray(strengths > 0)
    learned = np.asarray(sae.W_dec)
    sums = {name: np.asarray(value, np.float64) for name, value in reconstruction_sums(x, x_hat, acts).items()}
    return {
        **reconstruction(len(x), sums),
        "l0_truth": float(present.sum(axis=1).mean()),
        **recovery.similarity(directions, learned),
        **{f"random_{name}": value for name, value in recovery.control(directions, len(learned)).items()},
        **recovery.detection(directions, learned, present, fires),
        **recovery.readouts(directions, learned, np.asarray(strengths), np.asarray(x), np.asarray(acts)),
    }
