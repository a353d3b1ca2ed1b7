"""Training starts from an SAE that was trained before: exactly as it is, or not at all."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_service.architectures import ARCHITECTURES
from sae_service.errors import InvalidSpec
from sae_service.sae.architecture import Architecture
from sae_service.sae.inference import InferenceSAE, unscaled
from sae_service.sae.sites import at
from tests.planted import planted_rows, trained
from tests.saes import random_sae, results, rows

X = rows()
STARTS = {
    "relu": ("standard", "standard_tied", "p_annealing", "gated", "jumprelu", "batchtopk", "matryoshka"),
    "jumprelu": ("jumprelu", "jumprelu_tanh", "gated"),
    "one threshold": ("jumprelu", "jumprelu_tanh", "gated", "batchtopk", "matryoshka"),
    "topk": ("topk",),
}


def plain(kind: str) -> InferenceSAE:
    """A random SAE of one hook point."""
    return random_sae(kind).replace(sites=at("hook", 6))


def at_scale(sae: InferenceSAE, scale: float) -> InferenceSAE:
    """The SAE for raw rows, of one that was trained on rows times a scale."""
    return unscaled(sae, {"hook": scale}, {"hook": scale})


def sae_with(choice: str) -> InferenceSAE:
    if choice in ("relu", "topk"):
        return plain(choice).replace(**({"k": 4} if choice == "topk" else {}))
    threshold = np.full(24, 0.4, np.float32) if choice == "one threshold" else np.linspace(0.1, 1, 24, dtype=np.float32)
    return plain("relu").replace(threshold=threshold)


def with_norms(sae: InferenceSAE) -> InferenceSAE:
    """Another SAE, with decoder rows of many norms, one of them 0."""
    norms = np.linspace(0, 3, len(sae.W_dec), dtype=np.float32)
    return sae.replace(W_dec=sae.W_dec * norms[:, None])


def config_of(kind: str, **changes: Any) -> Any:
    k = {"k": 4} if "k" in ARCHITECTURES[kind].config.model_fields else {}
    return ARCHITECTURES[kind].config.model_validate({"d_sae": 24, **k, **changes})


def exported_again(kind: str, sae: InferenceSAE) -> InferenceSAE:
    config = config_of(kind)
    return ARCHITECTURES[kind].export(config, on_device(ARCHITECTURES[kind].from_inference(config, sae)))


def on_device(parameters: Any) -> Any:
    """The parameters as training takes them over."""
    return jax.tree.map(jnp.asarray, parameters)


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_what_an_architecture_has_trained_it_can_start_from(kind: str) -> None:
    architecture: Architecture = ARCHITECTURES[kind]
    state, _ = trained(architecture, 30)
    raw = at_scale(architecture.export(architecture.example, state.parameters), 0.1)
    started = architecture.from_inference(architecture.example, at_scale(raw, 1 / 0.1))
    assert jax.tree.structure(started) == jax.tree.structure(state.parameters)
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(state.parameters)]
    assert [np.shape(leaf) for leaf in jax.tree.leaves(started)] == shapes
    again = at_scale(architecture.export(architecture.example, on_device(started)), 0.1)
    x = planted_rows(64, seed=99) * 10
    np.testing.assert_allclose(results(again, x)[1], results(raw, x)[1], atol=1e-5 * float(np.abs(x).max()))


@pytest.mark.parametrize(("choice", "kind"), [(choice, kind) for choice, kinds in STARTS.items() for kind in kinds])
def test_a_start_reconstructs_as_the_sae_does(choice: str, kind: str) -> None:
    sae = sae_with(choice)
    again = exported_again(kind, sae)
    np.testing.assert_allclose(results(again, X)[1], results(sae, X)[1], atol=1e-5)


@pytest.mark.parametrize("kind", ["standard", "standard_tied", "p_annealing", "gated", "jumprelu", "jumprelu_tanh"])
def test_decoder_norms_are_folded_where_that_changes_nothing(kind: str) -> None:
    sae = with_norms(sae_with("jumprelu" if kind.startswith("jumprelu") else "relu"))
    again = exported_again(kind, sae)
    np.testing.assert_allclose(results(again, X)[1], results(sae, X)[1], atol=3e-5)


def test_a_threshold_below_zero_is_none() -> None:
    sae = plain("relu").replace(threshold=np.full(24, -0.3, np.float32))
    np.testing.assert_allclose(results(exported_again("standard", sae), X)[1], results(sae, X)[1], atol=1e-5)


@pytest.mark.parametrize(
    ("choice", "kind"), [(choice, kind) for choice, kinds in STARTS.items() for kind in ARCHITECTURES if kind not in kinds]
)
def test_what_would_not_be_exact_is_refused_with_the_field_and_another_kind(choice: str, kind: str) -> None:
    with pytest.raises(InvalidSpec, match=r"take|topk") as caught:
        exported_again(kind, sae_with(choice))
    assert caught.value.param == "/architecture/kind"


def test_another_k_is_refused_with_the_one_that_the_sae_has() -> None:
    with pytest.raises(InvalidSpec, match="must be 4") as caught:
        ARCHITECTURES["topk"].from_inference(config_of("topk", k=5), sae_with("topk"))
    assert caught.value.param == "/architecture/k"


def test_norms_that_decide_which_latents_are_kept_are_refused() -> None:
    with pytest.raises(InvalidSpec, match="norms from 0 to 3"):
        exported_again("topk", with_norms(sae_with("topk")))
    with pytest.raises(InvalidSpec, match="different thresholds"):
        exported_again("batchtopk", with_norms(sae_with("one threshold")))


def test_an_infinite_threshold_is_refused() -> None:
    sae = plain("relu").replace(threshold=np.full(24, math.inf, np.float32))
    with pytest.raises(InvalidSpec, match="infinite"):
        exported_again("gated", sae)
