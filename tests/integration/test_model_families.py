"""Models of other families than the demo's: what is said of hook points, dtypes, weights and tokenizers before the first step."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import ByT5Tokenizer

from sae_service import pipeline
from sae_service.activations.model import LanguageModel
from sae_service.activations.model_check import Found, Place, check
from sae_service.errors import InvalidSpec, ModelNotFound
from sae_service.hook_points import BLOCK_SITES, SILENT, TOP_SITES, check_site
from sae_service.spec import JobSpec, ModelSpec
from sae_service.storage.objects import Storage
from tests.model_families import CONFIGS, Families
from tests.recorder import Recorder

TEXTS = ["In the beginning God created the heaven and the earth.", "And"]


def loaded(path: Path, **spec: Any) -> LanguageModel:
    return LanguageModel(ModelSpec(name=str(path), **spec), "cpu")


def checked(model: LanguageModel, *reads: str, writes: tuple[str, ...] | None = None) -> Found:
    return check(model, 64, [Place(reads, writes or reads, "/saes/0")])


def is_refused(site: str, family: str) -> bool:
    try:
        check_site(site, family, None)
    except InvalidSpec:
        return True
    return False


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_what_is_known_of_a_familys_hook_points_is_what_the_library_has(families: Families, family: str) -> None:
    model = loaded(families.path(family))
    assert model.family == family
    names = [*(f"blocks.1.{site}" for site in (*BLOCK_SITES, *SILENT)), *TOP_SITES, "embed.hook_in", "hook_pos_embed"]
    there = [name for name in names if name in model.bridge.hook_dict]
    gated = {name for name in there if model.bridge._gated_hook_reason(model.bridge.hook_dict[name].name or name)}
    tokens = model.sample()
    fired = dict(model.fired(tokens, (name for name in there if name not in gated)))
    rows = {name for name, value in fired.items() if value.dim() >= 3 and value.shape[:2] == tokens.shape}
    assert {name for name in there if not is_refused(name, family)} == rows


def test_a_hook_point_that_is_known_to_be_silent_is_refused_with_what_to_use(families: Families) -> None:
    with pytest.raises(InvalidSpec, match=r"Use blocks\.1\.attn\.hook_z") as refused:
        checked(loaded(families.path("llama")), "blocks.1.attn.hook_result")
    assert refused.value.param == "/saes/0/hook_name"


def test_the_way_into_the_mlp_is_read_and_replaced_where_a_family_has_it(families: Families) -> None:
    assert checked(loaded(families.path("llama")), "blocks.1.hook_mlp_in").widths == {"blocks.1.hook_mlp_in": 64}


@pytest.mark.parametrize(
    ("family", "hook_name", "text"),
    [
        ("opt", "blocks.1.ln2.hook_normalized", "not one vector for each token"),
        ("qwen2_moe", "blocks.1.mlp.shared_expert.hook_post", "of (2, 7) tokens it has (14, 64)"),
        ("olmoe", "blocks.1.mlp.gate.hook_out", "not one vector for each token"),
        ("llama", "rotary_emb.hook_in", "does not reach the loss"),
        ("llama", "rotary_emb.hook_out", "computes nothing"),
        ("olmo", "blocks.1.ln1.hook_normalized", "nothing can be put in its place"),
        ("llama", "blocks.1.hook_resid_pots", "Close: blocks.1.hook_resid_post"),
    ],
)
def test_a_hook_point_that_cannot_be_trained_on_or_spliced_is_refused_by_its_field(
    families: Families, family: str, hook_name: str, text: str
) -> None:
    model = loaded(families.path(family))
    with pytest.raises(InvalidSpec) as refused:
        check(model, 64, [Place([name], [name], f"/saes/{index}") for index, name in enumerate(("hook_embed", hook_name))])
    assert refused.value.param == "/saes/1/hook_name"
    assert text in f"{refused.value.message} {refused.value.hint}"


def test_one_place_under_two_names_is_one_place(families: Families) -> None:
    model = loaded(families.path("llama"))
    with pytest.raises(InvalidSpec, match=r"blocks\.1\.hook_resid_pre has the values of blocks\.0\.hook_resid_post") as refused:
        checked(model, "blocks.0.hook_resid_post", writes=("blocks.1.hook_resid_pre",))
    assert refused.value.param == "/saes/0/hook_name_out"


def test_a_hook_point_that_has_the_values_of_another_is_said(families: Families) -> None:
    model = loaded(families.path("llama"))
    assert checked(model, "blocks.1.hook_resid_mid").warnings == []
    with torch.no_grad():
        model.bridge.original_model.model.layers[1].self_attn.o_proj.weight.zero_()
    assert checked(model, "blocks.1.hook_resid_mid").warnings == [
        "In this model blocks.1.hook_resid_mid has the values of blocks.1.hook_resid_pre."
    ]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["olmo", "olmo2", "olmo3", "gpt_neox"])
def test_a_model_in_half_precision_is_the_published_one(families: Families, family: str, dtype: str) -> None:
    model = loaded(families.path(family), dtype=dtype)
    assert checked(model, "blocks.1.hook_resid_post").widths == {"blocks.1.hook_resid_post": 64}
    published = transformers.AutoModelForCausalLM.from_pretrained(families.path(family), dtype=getattr(torch, dtype))
    tokens = torch.from_numpy(model.sample()).long()
    with torch.inference_mode():
        hidden = published(tokens, output_hidden_states=True).hidden_states
    found = model.activations(model.sample(), ("blocks.0.hook_resid_post",))["blocks.0.hook_resid_post"]
    torch.testing.assert_close(found, hidden[1], atol=0, rtol=0)


def test_a_model_that_does_not_run_in_a_dtype_is_refused_by_that(families: Families, monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype, param in (("bfloat16", "/stream/model/dtype"), ("float32", "/stream/model/name")):
        model = loaded(families.path("llama"), dtype=dtype)
        model.bridge.original_model.lm_head.to(torch.float64)
        with pytest.raises(InvalidSpec, match=f"does not run in {dtype}") as refused:
            checked(model, "blocks.1.hook_resid_post")
        assert refused.value.param == param


@pytest.mark.parametrize("family", ["gpt_oss", "qwen2_moe"])
def test_a_model_that_cannot_be_folded_exactly_is_refused(
    families: Families, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for measured in (False, True):
        if measured:
            monkeypatch.setattr("sae_service.hook_points.INEXACT_FOLDING", ())
        with pytest.raises(InvalidSpec, match="cannot be folded exactly") as refused:
            loaded(families.path(family), weight_processing="compatibility")
        assert refused.value.param == "/stream/model/weight_processing"
        assert 'Use "none"' in refused.value.hint


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_model_that_can_be_folded_is(families: Families, dtype: str) -> None:
    folded, plain = (
        loaded(families.path("gpt2"), weight_processing=processing, dtype=dtype) for processing in ("compatibility", "none")
    )
    assert folded.bridge.compatibility_mode
    np.testing.assert_allclose(folded.losses(folded.sample()), plain.losses(plain.sample()), rtol=plain.tolerance)
    names = ("blocks.1.hook_resid_post", "blocks.1.hook_out", "blocks.1.hook_mlp_in", "blocks.1.attn.hook_z")
    assert [checked(folded, name).widths for name in names] == [{name: 64} for name in names]


def test_a_model_without_a_tokenizer_reads_token_ids_and_no_text(families: Families, tmp_path: Path) -> None:
    for family in ("llama", "gpt2"):
        model = loaded(families.without_tokenizer(family, tmp_path))
        assert model.tokenizer is None
        assert checked(model, "blocks.1.hook_resid_post").widths
        assert model.excluded_tokens(("bos", "eos", 7)) == (7,)
        for ask in (lambda model=model: model.bos, partial(model.encode, TEXTS)):
            with pytest.raises(ModelNotFound, match="text needs one") as refused:
                ask()
            assert refused.value.param == "/stream/model/name"
            assert "token ids" in refused.value.hint


@pytest.mark.parametrize(
    ("config", "text"),
    [({}, "neither a BOS nor an EOS"), ({"bos_token": "<s>", "eos_token": "</s>"}, "starts a text with token 2048")],
)
def test_a_token_that_the_model_does_not_have_starts_no_row(
    families: Families, tmp_path: Path, config: dict[str, str], text: str
) -> None:
    folder = families.with_tokenizer("llama", tmp_path, {"tokenizer_class": "PreTrainedTokenizerFast", **config})
    model = loaded(folder)
    assert model.encode(TEXTS)[0]
    with pytest.raises(InvalidSpec, match=text) as refused:
        assert model.bos is None
    assert refused.value.param == "/stream/model/name"


def test_documents_are_not_cut_whatever_the_tokenizers_file_says(families: Families, tmp_path: Path) -> None:
    plain = loaded(families.path("llama"))
    folder = families.without_tokenizer("llama", tmp_path)
    content = json.loads((families.path("llama") / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert loaded(folder).encode(TEXTS) == plain.encode(TEXTS)


def test_a_tokenizer_without_a_fast_backend_works(families: Families, tmp_path: Path) -> None:
    folder = families.without_tokenizer("llama", tmp_path)
    ByT5Tokenizer().save_pretrained(folder)
    model = loaded(folder)
    assert model.bos == 1
    assert model.encode(["ab", ""]) == [[100, 101], []]


def test_tokens_that_the_model_does_not_have_are_refused_before_the_device_sees_them(families: Families) -> None:
    model = loaded(families.path("llama"))
    for read in (model.losses, partial(model.activations, hook_names=("blocks.0.hook_out",))):
        with pytest.raises(InvalidSpec, match="a token 2048, and the model has 2048 tokens"):
            read(np.full((1, 4), 2048, np.int32))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b"not weights"),
        ("config.json", b'{"model_type": "no_such_family"}'),
        ("config.json", b'{"model_type": "llama", "hidden_size": "wide"}'),
    ],
)
def test_a_model_that_cannot_be_loaded_is_not_found(
    families: Families, tmp_path: Path, file: str, content: bytes
) -> None:
    folder = families.without_tokenizer("llama", tmp_path)
    (folder / file).write_bytes(content)
    with pytest.raises(ModelNotFound, match=r"cannot (be read|load)") as refused:
        loaded(folder)
    assert refused.value.param == "/stream/model/name"


def test_what_is_to_be_said_of_a_hook_point_is_an_event_of_the_job(
    families: Families, tmp_path: Path, spec: dict[str, Any]
) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(families.path("llama"))
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
    folder = families.with_tokenizer("llama", tmp_path, {"bos_token": "<|bos|>"})
    model.save_pretrained(folder)
    spec["stream"] |= {"model": {"name": str(folder)}}
    spec["saes"] = [spec["saes"][0] | {"hook_name": "blocks.1.hook_resid_mid"}]
    recorder = Recorder()
    storage = Storage((tmp_path / "storage").as_uri())
    assert pipeline.run(JobSpec.model_validate(spec), storage, "jobs/test", recorder, should_stop=lambda: True) is None
    said = "In this model blocks.1.hook_resid_mid has the values of blocks.1.hook_resid_pre."
    assert ("warning", said) in recorder.events
