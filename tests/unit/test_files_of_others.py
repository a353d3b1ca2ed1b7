"""Files that other tools write and we do not: they are read as those tools read them, or refused in their words."""

import json
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from sae_service.errors import InvalidSpec
from sae_service.formats import FORMATS, torch_zip
from tests.saes import DESCRIPTION, random_sae, results, rows

X = rows()


def in_training(architecture: str, rescaled: bool | None, centred: bool) -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
    """A checkpoint of SAELens' training, and its tensors."""
    files = FORMATS["saelens"].to_files(random_sae("relu"), DESCRIPTION)
    config = json.loads(files["cfg.json"]) | {"architecture": architecture, "k": 3.0, "apply_b_dec_to_input": centred}
    tensors: dict[str, Any] = load(files["sae_weights.safetensors"])
    tensors |= {"W_dec": 2 * tensors["W_dec"], "topk_threshold": np.array(0.7, np.float64)}
    config |= {} if rescaled is None else {"rescale_acts_by_decoder_norm": rescaled}
    return {"cfg.json": json.dumps(config).encode(), "sae_weights.safetensors": save(tensors)}, tensors


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
@pytest.mark.parametrize("rescaled", [None, True, False])
@pytest.mark.parametrize("centred", [True, False])
def test_a_training_checkpoint_of_saelens_has_one_threshold(architecture: str, rescaled: bool | None, centred: bool) -> None:
    files, tensors = in_training(architecture, rescaled, centred)
    acts, x_hat = results(FORMATS["saelens"].from_files(files), X)
    norms = np.ones(24) if rescaled is False else np.linalg.norm(tensors["W_dec"], axis=1)
    z = ((X - tensors["b_dec"] * centred) @ tensors["W_enc"] + tensors["b_enc"]) * norms
    expected = np.where(z > 0.7, z, 0)
    np.testing.assert_allclose(acts, expected, atol=1e-5)
    np.testing.assert_allclose(x_hat, expected / norms @ tensors["W_dec"] + tensors["b_dec"], atol=1e-5)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ("expected_average_only_in", "one number for all rows"),
        ("constant_norm_rescale", "to one norm"),
        ("layer_norm", "mean 0 and variance 1"),
        ("something", "not known here"),
    ],
)
def test_an_sae_of_saelens_that_wants_its_input_scaled_says_how(scaling: str, message: str) -> None:
    files = FORMATS["saelens"].to_files(random_sae("relu"), DESCRIPTION)
    config = json.loads(files["cfg.json"]) | {"normalize_activations": scaling}
    with pytest.raises(InvalidSpec, match=f"{message}.*{scaling}"):
        FORMATS["saelens"].from_files(files | {"cfg.json": json.dumps(config).encode()})


def test_gemma_scope_2_has_lower_case_names() -> None:
    sae = random_sae("jumprelu")
    tensors = load(FORMATS["gemma_scope_2"].to_files(sae, DESCRIPTION)["params.safetensors"])
    assert set(tensors) == {"w_enc", "b_enc", "w_dec", "b_dec", "threshold"}
    np.testing.assert_array_equal(FORMATS["gemma_scope_2"].from_files({"params.safetensors": save(tensors)}).W_dec, sae.W_dec)
    with pytest.raises(InvalidSpec, match="affine_skip_connection"):
        FORMATS["gemma_scope_2"].from_files(
            {"params.safetensors": save(tensors | {"affine_skip_connection": np.zeros((6, 6), np.float32)})}
        )


@pytest.mark.parametrize("name", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_a_batchtopk_sae_of_dictionary_learning_without_threshold_is_refused_in_these_words(name: str) -> None:
    sae = random_sae("relu")
    plain = {part: np.asarray(getattr(sae, part)) for part in ("W_enc", "b_enc", "W_dec", "b_dec")}
    layers = {
        "encoder.weight": plain["W_enc"].T, "encoder.bias": plain["b_enc"], "decoder.weight": plain["W_dec"].T,
        "b_dec": plain["b_dec"],
    }  # fmt: skip
    files = {
        "config.json": json.dumps({"trainer": {"dict_class": name}}).encode(),
        "ae.pt": torch_zip.to_bytes(layers if name == "BatchTopKSAE" else plain, root="ae"),
    }
    with pytest.raises(InvalidSpec, match="has no threshold; it was written before"):
        FORMATS["dictionary_learning"].from_files(files)
