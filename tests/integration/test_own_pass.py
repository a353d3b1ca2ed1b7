"""The model's own forward pass beside the bridge's: the same values, by the modules that are needed and no others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from sae_service.activations.model import LanguageModel, last_layer
from sae_service.activations.model_check import Place, check
from sae_service.spec import ModelSpec
from tests.model_families import Families

RESIDUAL = ("blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.1.hook_resid_mid", "blocks.1.hook_resid_post")
NAMES = (*RESIDUAL, "blocks.0.hook_attn_out", "blocks.1.hook_mlp_out", "blocks.1.mlp.hook_in", "blocks.1.attn.hook_z")
FAMILIES = ("gemma2", "gpt2", "gpt_neox", "llama", "qwen2")


def loaded(path: Path, **spec: Any) -> LanguageModel:
    return LanguageModel(ModelSpec(name=str(path), **spec), "cpu")


def by_bridge(model: LanguageModel, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    tokens = torch.from_numpy(model.sample()).long()
    with torch.inference_mode():
        _, cache = model.bridge.run_with_cache(
            tokens, names_filter=list(names), stop_at_layer=last_layer(names), return_type=None
        )
    return {name: cache[name].flatten(start_dim=2) for name in names}


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, families: Families) -> LanguageModel:
    return loaded(families.path(request.param))


def test_it_has_the_values_and_the_losses_of_the_bridge_and_does_without_it(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In GPT-NeoX attention and MLP read the same residual stream.
    names = tuple(name for name in NAMES if name in model.bridge.hook_dict)
    expected = by_bridge(model, names)
    tokens = torch.from_numpy(model.sample()).long()
    logits = model.bridge(tokens, return_type="logits")
    found, losses = model.activations(model.sample(), names), model.losses(model.sample())
    assert model.warnings == []
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)
    wanted = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
    np.testing.assert_allclose(losses, wanted.detach().numpy(), rtol=1e-5)
    edits = {names[0]: lambda rows: rows * 0}
    edited = model.losses(model.sample(), edits)
    assert not np.allclose(edited, losses)
    for method in ("forward", "run_with_cache", "run_with_hooks"):
        monkeypatch.setattr(model.bridge, method, None)
    again = model.activations(model.sample(), names)
    assert all(torch.equal(again[name], found[name]) for name in names)
    np.testing.assert_array_equal(model.losses(model.sample(), edits), edited)


@pytest.mark.parametrize("family", [*FAMILIES, "opt", "phi3"])
def test_it_ends_with_the_last_hook_point_that_is_wanted(families: Families, family: str) -> None:
    model = loaded(families.path(family))
    model.activations(model.sample(), ("blocks.0.hook_resid_post",))
    ran: list[torch.nn.Module] = []
    counting = register_module_forward_pre_hook(lambda module, _: ran.append(module))
    try:
        model.activations(model.sample(), ("blocks.0.hook_resid_post",))
    finally:
        counting.remove()
    blocks = [module for module in ran if type(module).__name__.endswith(("Block", "Layer"))]
    assert len(blocks) == 1
    assert all(getattr(module, "out_features", 0) != model.n_vocab for module in ran)
    assert not any(type(module).__module__.startswith("transformer_lens") for module in ran)


def test_what_only_the_bridge_has_is_read_there_and_changes_nothing_beside_it(families: Families) -> None:
    model = loaded(families.path("gpt2"))
    names = only_bridge, own = ("blocks.1.attn.hook_q", "blocks.1.hook_resid_post")
    alone = {name: model.activations(model.sample(), (name,))[name] for name in names}
    assert model.warnings == []
    found = model.activations(model.sample(), names)
    assert all(found[name].numpy().tobytes() == alone[name].numpy().tobytes() for name in names)
    assert torch.equal(found[only_bridge], by_bridge(model, names)[only_bridge])
    model.activations(model.sample(), names[::-1])
    (said,) = model.warnings
    assert said.startswith(only_bridge)
    assert "two passes" in said
    assert own not in said


def test_a_hook_point_that_the_two_shape_differently_is_read_by_the_bridge_and_that_is_said(families: Families) -> None:
    model = loaded(families.path("gpt2"))
    place = Place(["hook_pos_embed"], ["hook_pos_embed"])
    (said,) = check(model, 64, [place]).warnings
    assert "TransformerLens's values of hook_pos_embed" in said
    found = model.activations(model.sample(), ("hook_pos_embed",))["hook_pos_embed"]
    assert torch.equal(found, by_bridge(model, ("hook_pos_embed",))["hook_pos_embed"])
    assert check(model, 64, [Place(["blocks.1.hook_mlp_out"], ["blocks.1.hook_mlp_out"])]).warnings == [said]


def test_a_bridge_that_computes_something_else_is_used_for_everything_and_that_is_said(families: Families) -> None:
    model = loaded(families.path("llama"))
    model.bridge.add_perma_hook("blocks.0.hook_out", lambda rows, hook: 2 * rows)
    names = ("blocks.1.hook_resid_post",)
    found = model.activations(model.sample(), names)[names[0]]
    assert torch.equal(found, by_bridge(model, names)[names[0]])
    (said,) = model.warnings
    assert "TransformerLens's values of its logits" in said


def test_folded_weights_are_the_bridges(families: Families) -> None:
    model = loaded(families.path("gpt2"), weight_processing="compatibility")
    names = ("blocks.1.hook_resid_post",)
    assert torch.equal(model.activations(model.sample(), names)[names[0]], by_bridge(model, names)[names[0]])
    assert model.warnings == []


def test_its_weights_are_those_of_the_bridge(families: Families) -> None:
    model = loaded(families.path("llama"))
    before = model.losses(model.sample())
    with torch.no_grad():
        model.bridge.original_model.model.layers[1].mlp.down_proj.weight.zero_()
    assert not np.allclose(model.losses(model.sample()), before)
