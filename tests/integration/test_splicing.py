"""Losses with an SAE spliced in, beside the published model's own with plain forward hooks, in numbers of NumPy."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sae_service.activations.model import LanguageModel
from sae_service.errors import InvalidSpec, Stopped
from sae_service.evaluation import on_text
from sae_service.evaluation.on_text import HeldOutText, held_out_batches
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.sites import Sites, at
from sae_service.spec import StreamSpec
from tests.conftest import DEMO

Rows = np.ndarray[Any, Any]
CONTEXT, N_TOKENS = 32, 11 * 32
EARLY, LATE = ("blocks.1.hook_resid_post", 128), ("blocks.2.hook_resid_post", 128)
READ, WRITTEN = ("blocks.0.mlp.hook_in", 128), ("blocks.0.hook_mlp_out", 128)
SITES = {"sae": at(*EARLY), "transcoder": Sites((READ,), (WRITTEN,)), "crosscoder": Sites((EARLY, LATE), (EARLY, LATE))}
MLP = "transformer.h.0.mlp"
MODULES = {EARLY[0]: "transformer.h.1", LATE[0]: "transformer.h.2", READ[0]: MLP, WRITTEN[0]: MLP}
D_SAE = 192


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(stream_of(DEMO / "text").text_source[0], "cpu")


def stream_of(text: Path, exclude: tuple[str | int, ...] = ("bos",)) -> StreamSpec:
    return StreamSpec.model_validate({
        "model": {"name": str(DEMO / "model")}, "dataset": {"path": str(text), "held_out_share": 0.49}, "context_size": CONTEXT,
        "prompts": 4, "tokens": 1000, "batch": 100, "exclude": exclude,
    })  # fmt: skip


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory, model: LanguageModel) -> StreamSpec:
    """Documents of many lengths, so that every batch has its own number of BOS; the commonest token is excluded as well."""
    file = tmp_path_factory.mktemp("text") / "text.jsonl"
    words = ["in", "the", "beginning", "was", "the", "word", "and", "the", "people", "of", "the", "land"]
    documents = [" ".join(np.random.default_rng(index).permutation(words * 4)[: 3 + 7 * index % 50]) for index in range(120)]
    file.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    (the,) = model.encode([" the"])[0]
    return stream_of(file, ("bos", the))


def sae_at(sites: Sites, seed: int = 0) -> InferenceSAE:
    """An SAE with random weights that writes rows about as long as those of the model."""
    random = np.random.default_rng(seed)
    shapes = {"W_enc": (sites.d_read, D_SAE), "b_enc": (D_SAE,), "W_dec": (D_SAE, sites.d_write), "b_dec": (sites.d_write,)}
    parts: dict[str, Any] = {name: random.normal(scale=0.05, size=shape).astype(np.float32) for name, shape in shapes.items()}
    return InferenceSAE(**parts, threshold=np.full(D_SAE, 0.01, np.float32), sites=sites)


def written_by(sae: InferenceSAE, x: Rows) -> Rows:
    """What the SAE writes, in NumPy."""
    z = x @ np.asarray(sae.W_enc) + np.asarray(sae.b_enc)
    return np.where(z > np.asarray(sae.threshold), np.maximum(z, 0), 0) @ np.asarray(sae.W_dec) + np.asarray(sae.b_dec)


class Reference:
    """The model as transformers has it, whose modules are read and replaced with torch's own forward hooks."""

    def __init__(self, tokens: Rows) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(DEMO / "model", dtype=torch.float32)
        self.tokens = tokens

    def losses(self, replace: Mapping[str, Callable[[Rows], Rows]]) -> Rows:
        """Next-token losses with the output of modules replaced, from the logits by hand."""
        hooks: list[Any] = []
        for name, function in replace.items():

            def hook(_module: Any, _inputs: Any, output: Any, function: Callable[[Rows], Rows] = function) -> Any:
                rows = output[0] if isinstance(output, tuple) else output
                new = torch.from_numpy(np.asarray(function(rows.numpy()), np.float32))
                return (new, *output[1:]) if isinstance(output, tuple) else new

            hooks.append(self.model.get_submodule(MODULES[name]).register_forward_hook(hook))
        with torch.inference_mode():
            logits = self.model(torch.from_numpy(self.tokens).long()).logits.double().numpy()
        for hook in hooks:
            hook.remove()
        shifted = logits - logits.max(axis=-1, keepdims=True)
        log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        return -np.take_along_axis(log_probabilities[:, :-1], self.tokens[:, 1:, None].astype(int), axis=-1)[..., 0]

    def seen(self, name: str) -> Rows:
        """The rows at a hook point in a clean pass."""
        found: list[Rows] = []
        module = self.model.get_submodule(MODULES[name])
        if name == READ[0]:
            handle = module.register_forward_pre_hook(lambda _module, inputs: found.append(inputs[0].numpy()))
        else:
            handle = module.register_forward_hook(
                lambda _module, _inputs, output: found.append((output[0] if isinstance(output, tuple) else output).numpy())
            )
        self.losses({})
        handle.remove()
        return found[0]

    def figures(self, sae: InferenceSAE, keep: Rows) -> dict[str, float]:
        """The figures of an SAE, with what it writes where `keep` is true."""
        assert sae.sites is not None
        x, y = (np.concatenate([self.seen(name) for name in names], axis=-1) for names in (sae.sites.reads, sae.sites.writes))
        y_hat = written_by(sae, x)
        edges = np.cumsum([width for _, width in sae.sites.write])[:-1]
        parts = dict(zip(sae.sites.writes, np.split(y_hat, edges, axis=-1), strict=True))
        at_kept = keep[..., None]
        spliced = self.losses({name: lambda rows, part=part: np.where(at_kept, part, rows) for name, part in parts.items()})
        zeroed = self.losses(dict.fromkeys(parts, lambda rows: np.where(at_kept, 0, rows)))
        counted = keep[:, :-1] & keep[:, 1:]
        clean, with_sae, zero = (losses[counted].mean() for losses in (self.losses({}), spliced, zeroed))
        deviations = y[keep] - y[keep].mean(axis=0)
        return {
            "ce_loss": clean, "ce_loss_sae": with_sae, "ce_loss_zero": zero, "delta_ce_loss": with_sae - clean,
            "ce_loss_recovered": (zero - with_sae) / (zero - clean), "evaluation_tokens": keep.sum(),
            "fvu": ((y - y_hat)[keep] ** 2).sum() / (deviations**2).sum(),
        }  # fmt: skip


@pytest.fixture(scope="module")
def measured(model: LanguageModel, stream: StreamSpec) -> dict[str, dict[str, Any]]:
    return HeldOutText(stream, N_TOKENS, model).evaluate({name: lambda sites=sites: sae_at(sites) for name, sites in SITES.items()})


@pytest.fixture(scope="module")
def reference(model: LanguageModel, stream: StreamSpec) -> Reference:
    rows = np.concatenate([batch.tokens[batch.keep.any(axis=1)] for batch in held_out_batches(stream, N_TOKENS, model)])
    assert rows.shape == (11, CONTEXT)
    return Reference(rows)


@pytest.mark.parametrize("name", SITES)
def test_the_figures_are_those_of_plain_hooks_on_the_published_model(
    measured: dict[str, dict[str, Any]], reference: Reference, model: LanguageModel, stream: StreamSpec, name: str
) -> None:
    keep = ~np.isin(reference.tokens, model.excluded_tokens(stream.exclude))
    assert 0.3 < keep.mean() < 0.9
    for figure, expected in reference.figures(sae_at(SITES[name]), keep).items():
        assert measured[name][figure] == pytest.approx(expected, abs=1e-4, rel=1e-4), figure


def test_excluded_positions_are_neither_spliced_nor_counted(model: LanguageModel, stream: StreamSpec) -> None:
    (batch, *_) = held_out_batches(stream, N_TOKENS, model)
    clean, is_excluded = model.losses(batch.tokens), ~batch.keep.reshape(-1, 1)
    assert 0 < is_excluded.mean() < 1
    for sites in SITES.values():
        wrong_there = model.spliced_losses(batch.tokens, batch.keep, sites, lambda _, y: jnp.where(is_excluded, 100, y))
        np.testing.assert_allclose(wrong_there, clean, atol=1e-5)
    np.testing.assert_array_equal(model.zeroed_losses(batch.tokens, np.zeros_like(batch.keep), (EARLY[0],)), clean)
    either = ~batch.keep[:, :-1] | ~batch.keep[:, 1:]
    assert batch.counted(np.where(either, np.nan, 1).astype(np.float32)) == batch.n_predicted == (~either).sum()


def test_an_sae_that_writes_what_is_there_changes_no_loss(model: LanguageModel, stream: StreamSpec) -> None:
    (batch, *_) = held_out_batches(stream, N_TOKENS, model)
    clean = model.losses(batch.tokens)
    for sites in SITES.values():
        spliced = model.spliced_losses(batch.tokens, batch.keep, sites, lambda _, y: y)
        np.testing.assert_allclose(spliced, clean, atol=1e-5)


def test_each_structure_is_compiled_once_whatever_the_text(model: LanguageModel, stream: StreamSpec) -> None:
    batches = list(held_out_batches(stream, N_TOKENS, model))
    assert len({int(batch.keep.sum()) for batch in batches}) == 3, "batches of which different shares are kept"
    on_text.reconstructed.clear_cache()
    where = {"a": at(*EARLY), "b": at(*LATE), "c": SITES["transcoder"]}
    HeldOutText(stream, N_TOKENS, model).evaluate({name: lambda sites=sites: sae_at(sites) for name, sites in where.items()})
    assert on_text.reconstructed._cache_size() == 1, "one structure and one width, at three places"
    HeldOutText(stream, N_TOKENS, model).evaluate({"d": lambda: sae_at(SITES["crosscoder"])})
    assert on_text.reconstructed._cache_size() == 2


def test_one_sae_at_a_time_lies_on_the_device(model: LanguageModel, stream: StreamSpec) -> None:
    held: list[int] = []

    def loaded(seed: int) -> InferenceSAE:
        held.append(sum(array.shape in {(128, D_SAE), (D_SAE, 128)} for array in jax.live_arrays()))
        return sae_at(SITES["sae"], seed)

    found = HeldOutText(stream, N_TOKENS, model).evaluate({str(seed): lambda seed=seed: loaded(seed) for seed in range(3)})
    assert held == [0, 0, 0]
    assert found["0"]["fvu"] != found["1"]["fvu"]


def test_no_held_out_text_is_refused_and_a_stop_is_heeded(model: LanguageModel, stream: StreamSpec, tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "short"}) + "\n")
    with pytest.raises(InvalidSpec, match="less than one row"):
        HeldOutText(stream_of(tmp_path / "text.jsonl"), N_TOKENS, model).evaluate({"a": lambda: sae_at(SITES["sae"])})
    with pytest.raises(Stopped):
        HeldOutText(stream, N_TOKENS, model).evaluate({"a": lambda: sae_at(SITES["sae"])}, lambda: True)
