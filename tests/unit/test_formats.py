"""Every file format: what is written is read, and what is broken or hostile is refused by name."""

import contextlib
import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save
from safetensors.torch import save as save_torch

from sae_service.errors import DamagedCheckpoint, InvalidSpec
from sae_service.formats import FORMATS
from sae_service.sae.inference import InferenceSAE
from tests.saes import DESCRIPTION, KINDS, random_sae, results, rows

WRITABLE = [("saelens", kind) for kind in KINDS] + [("dictionary_learning", kind) for kind in KINDS]
WRITABLE += [(name, kind) for name in ("gemma_scope", "gemma_scope_2") for kind in ("relu", "jumprelu")] + [("sparsify", "topk")]
REFUSED = [("gemma_scope", "topk"), ("gemma_scope_2", "topk"), ("sparsify", "relu"), ("sparsify", "jumprelu")]
X = rows()
few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def written(name: str, kind: str, **sizes: int) -> tuple[InferenceSAE, dict[str, bytes]]:
    sae = random_sae(kind, **sizes)
    return sae, FORMATS[name].to_files(sae, DESCRIPTION)


def assert_reads_or_refuses(name: str, files: dict[str, bytes]) -> None:
    """Damage that happens to leave a file valid is read; nothing else may happen but a refusal."""
    with contextlib.suppress(DamagedCheckpoint, InvalidSpec):
        FORMATS[name].from_files(files)


def test_every_format_is_found() -> None:
    assert set(FORMATS) == {"saelens", "gemma_scope", "gemma_scope_2", "dictionary_learning", "sparsify"}


@pytest.mark.parametrize(("name", "kind"), WRITABLE)
@given(d_in=st.integers(1, 7), d_sae=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
@few
def test_what_is_written_is_read(name: str, kind: str, d_in: int, d_sae: int, seed: int) -> None:
    sae, files = written(name, kind, d_in=d_in, d_sae=d_sae, seed=seed)
    read = FORMATS[name].from_files(files)
    assert read.k == sae.k
    exact = name in ("saelens", "gemma_scope", "gemma_scope_2") or kind == "jumprelu"
    for part in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"):
        assert getattr(read, part).dtype == np.float32
        np.testing.assert_allclose(getattr(read, part), getattr(sae, part), rtol=0, atol=0 if exact else 1e-5)


@pytest.mark.parametrize(("name", "kind"), WRITABLE)
def test_an_sae_that_was_read_does_the_same(name: str, kind: str) -> None:
    sae, files = written(name, kind)
    for ours, theirs in zip(results(sae, X), results(FORMATS[name].from_files(files), X), strict=True):
        np.testing.assert_allclose(theirs, ours, atol=1e-5)


@pytest.mark.parametrize(("name", "kind"), WRITABLE)
def test_writing_twice_gives_the_same_bytes(name: str, kind: str) -> None:
    assert written(name, kind)[1] == written(name, kind)[1]


@pytest.mark.parametrize(("name", "kind"), REFUSED)
def test_what_a_format_cannot_hold_is_refused_with_a_way_out(name: str, kind: str) -> None:
    with pytest.raises(InvalidSpec, match="Write it as"):
        FORMATS[name].to_files(random_sae(kind), DESCRIPTION)


def test_k_and_thresholds_together_fit_no_format() -> None:
    both = random_sae("topk").replace(threshold=np.ones(24, np.float32))
    for format in FORMATS.values():
        with pytest.raises(InvalidSpec):
            format.to_files(both, DESCRIPTION)


# What others have written.


def foreign_saelens(kind: str, tensors: dict[str, Any], **config: Any) -> InferenceSAE:
    metadata = {"sae_lens_version": "6.54.12"}
    files = {"cfg.json": json.dumps({"architecture": kind, "metadata": metadata, **config}).encode()}
    return FORMATS["saelens"].from_files(files | {"sae_weights.safetensors": save(tensors)})


def random_tensors(**shapes: tuple[int, ...]) -> dict[str, Any]:
    random = np.random.default_rng(5)
    return {name: random.normal(scale=0.7, size=shape).astype(np.float32) for name, shape in shapes.items()}


BASE = {"W_enc": (6, 24), "W_dec": (24, 6), "b_dec": (6,)}


@pytest.mark.parametrize("centred", [True, False])
def test_a_gated_sae_of_saelens_gets_equivalent_thresholds(centred: bool) -> None:
    w = random_tensors(**BASE, r_mag=(24,), b_gate=(24,), b_mag=(24,))
    c = X - w["b_dec"] if centred else X
    acts = (c @ w["W_enc"] + w["b_gate"] > 0) * np.maximum(c @ (w["W_enc"] * np.exp(w["r_mag"])) + w["b_mag"], 0)
    found, x_hat = results(foreign_saelens("gated", w, apply_b_dec_to_input=centred), X)
    np.testing.assert_allclose(found, acts, atol=1e-4)
    np.testing.assert_allclose(x_hat, acts @ w["W_dec"] + w["b_dec"], atol=1e-4)


@pytest.mark.parametrize("config", [{}, {"apply_b_dec_to_input": True}, {"apply_b_dec_to_input": False}])
def test_saelens_subtracts_the_decoder_bias_unless_told_otherwise(config: dict[str, Any]) -> None:
    w = random_tensors(**BASE, b_enc=(24,), threshold=(24,))
    z = (X - (w["b_dec"] if config.get("apply_b_dec_to_input", True) else 0)) @ w["W_enc"] + w["b_enc"]
    found, _ = results(foreign_saelens("jumprelu", w, **config), X)
    np.testing.assert_allclose(found, np.maximum(z, 0) * (z > w["threshold"]), atol=1e-4)


def test_a_topk_sae_of_saelens_that_rescales_by_decoder_norms_is_folded() -> None:
    w = random_tensors(**BASE, b_enc=(24,))
    norms = np.linalg.norm(w["W_dec"], axis=1)
    z = (X @ w["W_enc"] + w["b_enc"]) * norms
    acts = np.where(z >= np.sort(z, axis=1)[:, -4:-3], np.maximum(z, 0), 0)
    sae = foreign_saelens("topk", w, k=4, rescale_acts_by_decoder_norm=True, apply_b_dec_to_input=False)
    found, x_hat = results(sae, X)
    np.testing.assert_allclose(found, acts, atol=1e-4)
    np.testing.assert_allclose(x_hat, (acts / norms) @ w["W_dec"] + w["b_dec"], atol=1e-4)


def test_a_config_from_before_saelens_6_is_translated() -> None:
    weights = save(random_tensors(**BASE, b_enc=(24,)) | {"scaling_factor": np.ones(24, np.float32)})
    old = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}, "architecture": "standard"}
    files = {"cfg.json": json.dumps(old).encode(), "sae_weights.safetensors": weights}
    assert FORMATS["saelens"].from_files(files).k == 3
    assert FORMATS["saelens"].from_files(files | {"cfg.json": b"{}"}).k is None
    with pytest.raises(InvalidSpec, match="tanh-relu"):
        FORMATS["saelens"].from_files(files | {"cfg.json": b'{"activation_fn": "tanh-relu"}'})


def test_half_precision_is_read() -> None:
    sae, files = written("saelens", "relu")
    tensors = load(files["sae_weights.safetensors"])
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        weights = save_torch({name: torch.tensor(tensor).to(dtype) for name, tensor in tensors.items()})
        read = FORMATS["saelens"].from_files(files | {"sae_weights.safetensors": weights})
        np.testing.assert_allclose(read.W_enc, sae.W_enc, rtol=1e-2)
        assert read.W_enc.dtype == np.float32


@pytest.mark.parametrize(
    ("name", "file", "change"),
    [
        ("saelens", "cfg.json", {"architecture": "matching_pursuit"}),
        ("saelens", "cfg.json", {"normalize_activations": "layer_norm"}),
        ("sparsify", "cfg.json", {"activation": "groupmax"}),
        ("sparsify", "cfg.json", {"skip_connection": True}),
        ("dictionary_learning", "config.json", {"trainer": {"dict_class": "CrossCoder"}}),
    ],
)
def test_what_has_no_equivalent_is_refused(name: str, file: str, change: dict[str, Any]) -> None:
    _, files = written(name, "topk")
    with pytest.raises(InvalidSpec):
        FORMATS[name].from_files(files | {file: json.dumps(json.loads(files[file]) | change).encode()})


# Damage.


@pytest.mark.parametrize(("name", "kind"), WRITABLE)
@given(data=st.data())
@few
def test_a_file_that_is_cut_off_is_refused(name: str, kind: str, data: st.DataObject) -> None:
    _, files = written(name, kind)
    file = data.draw(st.sampled_from(sorted(files)))
    length = data.draw(st.integers(0, len(files[file]) - 1))
    with pytest.raises(DamagedCheckpoint):
        FORMATS[name].from_files(files | {file: files[file][:length]})


@pytest.mark.parametrize(("name", "kind"), WRITABLE)
@given(data=st.data(), content=st.binary(max_size=200))
@few
def test_any_bytes_are_refused(name: str, kind: str, data: st.DataObject, content: bytes) -> None:
    _, files = written(name, kind)
    file = data.draw(st.sampled_from(sorted(files)))
    with pytest.raises(DamagedCheckpoint):
        FORMATS[name].from_files(files | {file: content})


@pytest.mark.parametrize(("name", "kind"), WRITABLE)
@given(data=st.data())
@settings(few, max_examples=150)
def test_changed_bytes_are_read_or_refused(name: str, kind: str, data: st.DataObject) -> None:
    _, files = written(name, kind, d_in=2, d_sae=3)
    file = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[file])
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
        content[position] = data.draw(st.integers(0, 255))
    assert_reads_or_refuses(name, files | {file: bytes(content)})


@pytest.mark.parametrize(("name", "kind"), WRITABLE)
def test_a_missing_file_is_refused_by_name(name: str, kind: str) -> None:
    _, files = written(name, kind)
    for file in files:
        with pytest.raises(DamagedCheckpoint, match=file):
            FORMATS[name].from_files({other: content for other, content in files.items() if other != file})


def test_numbers_that_are_not_finite_are_refused() -> None:
    sae = random_sae("jumprelu").replace(b_enc=np.full(24, np.nan, np.float32))
    for name in ("saelens", "gemma_scope", "gemma_scope_2", "dictionary_learning"):
        with pytest.raises(DamagedCheckpoint, match="b_enc"):
            FORMATS[name].from_files(FORMATS[name].to_files(sae, DESCRIPTION))


@pytest.mark.parametrize("k", [0, 25, -1, True, 2.0, "3", None])
def test_an_impossible_k_is_refused(k: Any) -> None:
    _, files = written("saelens", "topk")
    config = json.loads(files["cfg.json"]) | {"k": k}
    if k is None:
        del config["k"]  # 100 by default, and there are 24 latents
    with pytest.raises(DamagedCheckpoint, match="k must be"):
        FORMATS["saelens"].from_files(files | {"cfg.json": json.dumps(config).encode()})


def npz(**members: Any) -> dict[str, bytes]:
    file = io.BytesIO()
    np.savez_compressed(file, **members)
    return {"params.npz": file.getvalue()}


def test_a_compressed_gemma_scope_file_is_read_and_one_that_would_explode_is_not() -> None:
    sae = random_sae("jumprelu")
    arrays = {name: np.asarray(getattr(sae, name)) for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
    np.testing.assert_array_equal(FORMATS["gemma_scope"].from_files(npz(**arrays)).W_enc, sae.W_enc)
    with pytest.raises(DamagedCheckpoint, match="64 times"):
        FORMATS["gemma_scope"].from_files(npz(**arrays | {"W_enc": np.zeros((1000, 1000), np.float32)}))
    with pytest.raises(DamagedCheckpoint, match="allow_pickle"):
        FORMATS["gemma_scope"].from_files(npz(**arrays | {"b_dec": np.array([{}], object)}))
    with pytest.raises(DamagedCheckpoint, match="shape"):
        FORMATS["gemma_scope"].from_files(npz(**arrays | {"W_enc": arrays["W_enc"].T}))
    with pytest.raises(DamagedCheckpoint, match="extra"):
        FORMATS["gemma_scope"].from_files(npz(**arrays, extra=arrays["b_dec"]))
