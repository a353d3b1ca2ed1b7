"""The adapter of TransformerLens, on the model that ships: each test is a trap that its interface has."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sae_service.activations import buffer
from sae_service.activations.buffer import FillStart, TextHarvest
from sae_service.activations.model import LanguageModel, last_layer
from sae_service.activations.model_check import Place, check
from sae_service.activations.tokens import PackedTokens
from sae_service.activations.torch_to_jax import to_jax, to_torch
from sae_service.errors import InvalidSpec
from sae_service.spec import DatasetSpec, ModelSpec
from tests.conftest import DEMO


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(ModelSpec(name=str(DEMO / "model")), "cpu")


@pytest.fixture(scope="module")
def tokens(model: LanguageModel) -> np.ndarray[Any, Any]:
    random = np.random.default_rng(0).integers(10, 2000, (3, 32), dtype=np.int32)
    random[:, 0] = model.bos
    return random


@pytest.mark.parametrize(
    "name", ["blocks.0.hook_in", "blocks.3.hook_resid_pre", "blocks.2.mlp.hook_post", "blocks.1.attn.hook_z"]
)
def test_a_pass_that_stops_early_has_still_computed_what_was_asked(
    model: LanguageModel, tokens: np.ndarray[Any, Any], name: str
) -> None:
    assert last_layer((name,)) == int(name.split(".")[1]) + 1
    assert model.activations(tokens, (name,))[name].shape[:2] == tokens.shape


def test_a_hook_point_outside_the_blocks_is_read_in_a_whole_pass(
    model: LanguageModel, tokens: np.ndarray[Any, Any]
) -> None:
    assert last_layer(("ln_final.hook_normalized", "blocks.0.hook_out")) is None
    assert model.activations(tokens, ("ln_final.hook_normalized",))["ln_final.hook_normalized"].shape == (3, 32, 128)


@pytest.mark.parametrize(
    ("alias", "canonical"),
    [("blocks.2.hook_resid_post", "blocks.2.hook_out"), ("blocks.2.hook_resid_pre", "blocks.2.hook_in")],
)
def test_aliases_and_canonical_names_are_the_same_rows_also_together(
    model: LanguageModel, tokens: np.ndarray[Any, Any], alias: str, canonical: str
) -> None:
    both = model.activations(tokens, (alias, canonical))
    assert torch.equal(both[alias], both[canonical])
    assert torch.equal(both[alias], model.activations(tokens, (alias,))[alias])


def test_rows_are_those_of_the_published_model(model: LanguageModel, tokens: np.ndarray[Any, Any]) -> None:
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(DEMO / "model", dtype=torch.float32)
    with torch.inference_mode():
        hidden = reference(torch.from_numpy(tokens).long(), output_hidden_states=True).hidden_states
    ours = model.activations(tokens, ("blocks.1.hook_resid_post",))["blocks.1.hook_resid_post"]
    torch.testing.assert_close(ours, hidden[2], atol=1e-4, rtol=1e-4)


def test_no_token_is_put_before_ours(model: LanguageModel, tokens: np.ndarray[Any, Any]) -> None:
    without = tokens[:, 1:]
    assert model.activations(without, ("blocks.0.hook_out",))["blocks.0.hook_out"].shape[:2] == without.shape
    assert model.losses(without).shape == (3, 30)
    assert all(model.bos not in ids for ids in model.encode(["In the beginning", "And"]))


def test_the_context_is_checked_by_us(model: LanguageModel) -> None:
    place = Place(["blocks.0.hook_out"], ["blocks.0.hook_out"])
    assert check(model, 128, [place]).widths == {"blocks.0.hook_out": 128}
    with pytest.raises(InvalidSpec, match="128") as refused:
        check(model, 129, [place])
    assert refused.value.param == "/stream/context_size"


def test_heads_are_joined_into_one_vector(model: LanguageModel, tokens: np.ndarray[Any, Any]) -> None:
    names = ["blocks.1.attn.hook_z", "blocks.1.mlp.hook_post"]
    assert check(model, 16, [Place(names, names)]).widths == dict(zip(names, (128, 512), strict=True))


def test_replacing_a_hook_point_by_itself_changes_no_loss(
    model: LanguageModel, tokens: np.ndarray[Any, Any]
) -> None:
    clean = model.losses(tokens)
    for name in ("blocks.2.hook_resid_post", "blocks.1.attn.hook_z"):
        np.testing.assert_allclose(model.losses(tokens, {name: lambda rows: rows.clone()}), clean, rtol=1e-5)
    assert not np.allclose(model.losses(tokens, {"blocks.2.hook_resid_post": lambda rows: rows * 0}), clean)


def test_an_edit_that_returns_nothing_only_looks(model: LanguageModel, tokens: np.ndarray[Any, Any]) -> None:
    seen: list[torch.Tensor] = []
    losses = model.losses(tokens, {"blocks.2.hook_resid_post": seen.append})
    np.testing.assert_array_equal(losses, model.losses(tokens))
    assert seen[0].shape == (3, 32, 128)


def test_products_in_8_bits_change_a_pass_a_little_and_its_rows_stay_float32(
    model: LanguageModel, tokens: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("blocks.2.hook_resid_post", "blocks.1.hook_mlp_out")
    before, losses = model.activations(tokens, names), model.losses(tokens)
    monkeypatch.setattr(model, "precision", "bfloat16")
    after = model.activations(tokens, names)
    for name in names:
        assert after[name].dtype == torch.float32
        assert 0 < float((after[name] - before[name]).norm() / before[name].norm()) < 0.02
    changed = model.losses(tokens)
    assert 0 < np.linalg.norm(changed - losses) < model.tolerance * np.linalg.norm(losses)
    assert check(model, 32, [Place(names, names)]).widths == dict.fromkeys(names, 128)
    monkeypatch.undo()
    np.testing.assert_array_equal(model.losses(tokens), losses)


@pytest.mark.parametrize(("held_in", "expected"), [("float32", True), ("bfloat16", False), ("float16", False)])
def test_factors_are_rounded_only_where_weights_are_held_in_float32(
    held_in: Any, expected: bool, tokens: np.ndarray[Any, Any]
) -> None:
    wanted = None if held_in == "float16" else "bfloat16"
    model = LanguageModel(ModelSpec(name=str(DEMO / "model"), dtype=held_in, precision=wanted), "cpu")
    seen: list[bool] = []
    model.losses(tokens, {"blocks.2.hook_resid_post": lambda _: seen.append(torch.is_autocast_enabled("cpu"))})
    assert set(seen) == {expected}
    assert model.precisions["torch"]["autocast"] == ("bfloat16" if expected else None)
    assert model.activations(tokens, ("blocks.1.hook_mlp_out",))["blocks.1.hook_mlp_out"].dtype == getattr(torch, held_in)


def test_what_is_written_must_be_computed_after_what_is_read(model: LanguageModel) -> None:
    for reads, writes in (
        (["blocks.1.mlp.hook_in"], ["blocks.1.hook_mlp_out"]),
        (["blocks.0.hook_mlp_out", "blocks.1.attn.hook_z"], ["blocks.2.hook_resid_post", "blocks.3.hook_resid_post"]),
        (["blocks.3.hook_resid_post", "blocks.1.hook_resid_post"], ["blocks.1.hook_resid_post", "blocks.3.hook_resid_post"]),
    ):
        check(model, 16, [Place(reads, writes)])
    with pytest.raises(InvalidSpec, match=r"computes blocks\.1\.mlp\.hook_in, which is written, before") as refused:
        check(model, 16, [Place(["blocks.1.hook_mlp_out"], ["blocks.1.mlp.hook_in"], "/saes/2")])
    assert refused.value.param == "/saes/2/hook_name_out"
    with pytest.raises(InvalidSpec, match="hook_name_out must come after"):
        check(model, 16, [Place(["blocks.0.hook_in", "blocks.2.hook_in"], ["blocks.1.hook_mlp_out", "blocks.3.hook_mlp_out"])])


def test_tensors_change_hands_without_a_copy() -> None:
    tensor = torch.arange(1 << 14, dtype=torch.float32)
    array = to_jax(tensor)
    assert array.unsafe_buffer_pointer() == tensor.data_ptr()
    assert to_torch(array).data_ptr() == tensor.data_ptr()


@pytest.fixture
def harvest(model: LanguageModel) -> TextHarvest:
    dataset = DatasetSpec(path=str(DEMO / "text"), held_out_split="test")
    packed = PackedTokens(dataset, "train", model, 64, 4, repeat=True)
    return TextHarvest(model, packed, ("blocks.0.hook_out",), (model.bos,), FillStart())


def test_a_text_of_which_nothing_is_kept_is_refused(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer, "EMPTY_BATCHES", 3)
    packed = PackedTokens(DatasetSpec(path=str(DEMO / "text")), "train", model, 64, 4, repeat=True)
    everything = tuple(range(model.bridge.cfg.d_vocab))
    with pytest.raises(InvalidSpec, match="no token beside") as refused:
        TextHarvest(model, packed, ("blocks.0.hook_out",), everything, FillStart()).fill(600)
    assert refused.value.param == "/stream/exclude"


def test_a_fill_that_was_handed_over_is_never_written_again(harvest: TextHarvest) -> None:
    rows, _ = harvest.fill(600)
    array = rows["blocks.0.hook_out"]
    doubled = jax.jit(lambda x: jnp.sum(2 * x, axis=1))(array)
    before = np.array(array)
    for _ in range(3):
        harvest.fill(600)
    np.testing.assert_array_equal(np.asarray(array), before)
    np.testing.assert_allclose(np.asarray(doubled), 2 * before.sum(axis=1), atol=1e-3)
