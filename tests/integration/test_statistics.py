"""Measuring a model: the figures are those of plain hooks and NumPy, parts add up, and an interruption changes no byte."""

from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from sae_service.activations import passages as text
from sae_service.activations.model import LanguageModel
from sae_service.activations.tokens import Cursor
from sae_service.analysis.statistics.records import Statistics
from sae_service.readable import EVERYWHERE
from sae_service.spec import StatisticsSpec, StreamSpec
from tests.conftest import DEMO
from tests.measured import measured, statistics_spec

N_LAYERS = 4


class Plain:
    """The same model in transformers, with hooks, on the tokens that the job reads."""

    def __init__(self, stream: StreamSpec, n_prompts: int) -> None:
        model = LanguageModel(stream.text_source[0], "cpu")
        source = text.reading(text.whole(stream), "held_out", model, (), EVERYWHERE)
        batches = [prompts for prompts, _ in source.prompts(Cursor())]
        self.tokens = np.concatenate([batch.tokens for batch in batches])[:n_prompts]
        self.keep = np.concatenate([batch.trained for batch in batches])[:n_prompts]
        self.bos = model.bos
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            DEMO / "model", attn_implementation="eager", dtype=torch.float32
        )

    def read(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, Any]:
        """The embeddings, and of each layer the residual stream after it, what its MLP writes, and its attention."""
        after: dict[str, list[np.ndarray]] = {"": [], "mlp": []}

        def noted(where: list[np.ndarray]) -> Any:
            return lambda _module, _args, out: where.append((out[0] if isinstance(out, tuple) else out).numpy())

        handles = [layer.register_forward_hook(noted(after[""])) for layer in self.model.transformer.h]
        handles += [layer.mlp.register_forward_hook(noted(after["mlp"])) for layer in self.model.transformer.h]
        with torch.inference_mode():
            out = self.model(torch.from_numpy(tokens).long(), output_attentions=True, output_hidden_states=True)
        for handle in handles:
            handle.remove()
        patterns = np.stack([one.numpy() for one in out.attentions]).astype(np.float64)
        return out.hidden_states[0].numpy(), np.stack(after[""]), np.stack(after["mlp"]), patterns

    @cached_property
    def whole(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, Any]:
        """What is read on all tokens."""
        return self.read(self.tokens)

    def rows(self, layer: int) -> np.ndarray:
        """The residual stream after a layer at the positions that count, in float64."""
        return self.whole[1][layer][self.keep].astype(np.float64)


class Case(NamedTuple):
    found: Statistics
    columns: dict[str, np.ndarray]
    plain: Plain


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    _, found, columns = measured(tmp_path_factory.mktemp("measured"), statistics_spec())
    assert found is not None
    return Case(found, columns, Plain(StatisticsSpec.model_validate(statistics_spec()).stream, 40))


def test_moments_norms_and_largest_numbers_are_those_of_plain_hooks(case: Case) -> None:
    assert case.found.rows == case.plain.keep.sum() < case.found.tokens == case.plain.tokens.size
    for layer, one in enumerate(case.found.hook_points):
        x = case.plain.rows(layer)
        norms, deviation = np.linalg.norm(x, axis=1), x - x.mean()
        expected = {
            "mean": x.mean(), "rms": np.sqrt((x**2).mean()), "deviation": x.std(),
            "skewness": (deviation**3).mean() / x.std() ** 3, "kurtosis": (deviation**4).mean() / x.var() ** 2,
            "total_variance": x.var(axis=0).sum(), "mean_share": (x.mean(axis=0) ** 2).sum() / (x**2).sum(axis=1).mean(),
            "smallest": x.min(), "largest": x.max(), "largest_magnitude": np.abs(case.plain.whole[1][layer]).max(),
        }  # fmt: skip
        for name, value in expected.items():
            assert getattr(one, name) == pytest.approx(value, rel=1e-5, abs=1e-7), name
        assert (one.norm.mean, one.norm.deviation) == pytest.approx((norms.mean(), norms.std()), rel=1e-5)
        assert (one.norm.smallest, one.norm.largest) == pytest.approx((norms.min(), norms.max()), rel=1e-5)
        centred = x - x.mean(axis=0)
        kurtosis = (centred**4).mean(axis=0) / x.var(axis=0) ** 2
        np.testing.assert_allclose(case.columns[f"{one.hook_name}/kurtosis"], kurtosis, rtol=1e-5)
        np.testing.assert_allclose(case.columns[f"{one.hook_name}/variance"], x.var(axis=0), rtol=1e-5)
        top = np.argsort(-x.var(axis=0))[:10]
        assert [of.dimension for of in one.dimensions] == top.tolist()


def test_quantiles_and_small_shares_are_right_to_within_a_bin(case: Case) -> None:
    for layer, one in enumerate(case.found.hook_points):
        x = case.plain.rows(layer)
        norms = np.linalg.norm(x, axis=1)
        for share, value in one.norm.quantiles.items():
            assert value == pytest.approx(np.quantile(norms, float(share)), rel=0.01)
        for share, value in one.quantiles.items():
            assert value == pytest.approx(np.quantile(x, float(share)), rel=0.02, abs=0.01 * x.std())
        for multiple, share in one.small_shares.items():
            assert share == pytest.approx((np.abs(x) < float(multiple) * np.sqrt((x**2).mean())).mean(), rel=0.02)


def test_norms_grow_from_layer_to_layer_as_they_do_in_plain_hooks(case: Case) -> None:
    keep = case.plain.keep
    embedded, after, mlp, _ = case.plain.whole
    norms = [np.linalg.norm(rows[keep].astype(np.float64), axis=1) for rows in (embedded, *after)]
    for layer, one in enumerate(case.found.layers):
        assert one.growth == pytest.approx(norms[layer + 1].mean() / norms[layer].mean(), rel=1e-5)
        assert one.mlp is not None
        assert one.mlp.mean == pytest.approx(np.linalg.norm(mlp[layer][keep].astype(np.float64), axis=1).mean(), rel=1e-5)
    total = norms[-1].mean() / norms[0].mean()
    assert np.prod([one.growth or 0 for one in case.found.layers]) == pytest.approx(total, rel=1e-5), "the steps make the whole"


def test_positions_add_up_to_the_whole(case: Case) -> None:
    assert case.found.embedding is not None
    for one in case.found.hook_points:
        counts, means = (case.columns[f"{one.hook_name}/{part}"] for part in ("rows_by_position", "mean_norm_by_position"))
        assert counts.tolist() == case.plain.keep.sum(axis=0).tolist()
        assert (counts * means).sum() / counts.sum() == pytest.approx(one.norm.mean, rel=1e-12)
        assert sum(group.n for group in one.by_position) == one.norm.n == case.found.rows
        assert sum(group.n * group.mean for group in one.by_position) / one.norm.n == pytest.approx(one.norm.mean, rel=1e-12)
        shares = case.columns[f"{one.hook_name}/variance"] / one.total_variance
        assert shares.sum() == pytest.approx(1)
        assert [of.variance_share for of in one.dimensions] == pytest.approx(np.sort(shares)[::-1][:10])
        assert counts[0] == 0, "each row begins with BOS, which is left out"


def test_rows_of_special_tokens_are_told_beside_the_rest(case: Case) -> None:
    last = case.found.hook_points[-1]
    norms = np.linalg.norm(case.plain.whole[1][-1].astype(np.float64), axis=2)[case.plain.tokens == case.plain.bos]
    (bos,) = [one for one in last.special_tokens if one.id == case.plain.bos]
    assert (bos.n, bos.is_excluded) == (len(norms), True)
    assert (bos.mean, bos.largest) == pytest.approx((norms.mean(), norms.max()), rel=1e-5)


def test_attention_is_that_of_plain_hooks_at_the_positions_that_count(case: Case) -> None:
    keep, tokens = case.plain.keep[:24], case.plain.tokens[:24]
    assert case.found.attention_rows == keep.sum()
    places = np.arange(tokens.shape[1])
    for layer, one in enumerate(case.found.layers):
        pattern = case.plain.whole[3][layer, :24].transpose(0, 2, 1, 3)[keep]
        distances = (places[:, None] - places)[np.nonzero(keep)[1]][:, None]
        is_bos = (tokens == case.plain.bos)[np.nonzero(keep)[0]][:, None]
        logs = np.log(np.where(pattern > 0, pattern, 1))
        expected = {
            "distance": (pattern * distances).sum(-1), "first_share": pattern[..., 0],
            "separator_share": (pattern * is_bos).sum(-1), "entropy": -(pattern * logs).sum(-1),
        }  # fmt: skip
        for name, values in expected.items():
            np.testing.assert_allclose(getattr(one.heads, name), values.mean(axis=0), rtol=1e-5)
    assert case.found.even_distance == pytest.approx((np.nonzero(keep)[1] / 2).mean())


def test_norms_of_w_ov_are_those_of_the_whole_matrix(case: Case) -> None:
    for layer, one in zip(case.plain.model.transformer.h, case.found.layers, strict=True):
        attention = layer.attn
        W_V, W_O = attention.c_attn.weight[:, -attention.embed_dim :], attention.c_proj.weight
        for head, (frobenius, spectral) in enumerate(zip(one.heads.ov_frobenius or (), one.heads.ov_spectral or (), strict=True)):
            part = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
            W_OV = (W_V[:, part] @ W_O[part]).detach().double().numpy()
            assert frobenius == pytest.approx(np.linalg.norm(W_OV), rel=1e-5)
            assert spectral == pytest.approx(np.linalg.norm(W_OV, 2), rel=1e-5)


def test_cosines_of_a_cut_context_are_those_of_plain_hooks(case: Case) -> None:
    assert case.found.cut_lengths == (1, 2, 4, 8, 16, 32)
    places, cosines = case.columns["cut_places"], case.columns["cut_cosines"]
    assert (len(places), len(np.unique(places, axis=0))) == (24, 24)
    after = case.plain.whole[1]
    for (prompt, position), found in zip(places[::5], cosines[::5], strict=True):
        assert case.plain.keep[prompt, position]
        row = case.plain.tokens[prompt]
        for which, length in enumerate(case.found.cut_lengths):
            cut = np.concatenate([row[:1], row[position - length + 1 : position + 1]])
            a, b = case.plain.read(cut[None])[1][:, 0, -1].astype(np.float64), after[:, prompt, position].astype(np.float64)
            expected = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
            np.testing.assert_allclose(found[which], expected, atol=1e-5)
    means = np.array([one.cut_cosines for one in case.found.layers])
    np.testing.assert_allclose(means, cosines.mean(axis=0).T)


@pytest.mark.parametrize("at", [1, 3])
def test_a_job_that_was_stopped_goes_on_to_the_same_bytes(tmp_path: Path, at: int) -> None:
    spec = statistics_spec(checkpoints={"every_tokens": 48 * 8}, hook_names=["blocks.1.hook_mlp_out"])
    whole, _, columns = measured(tmp_path / "whole", spec)
    n_asked = 0

    def should_stop() -> bool:
        nonlocal n_asked
        n_asked += 1
        return n_asked > at

    first, nothing, _ = measured(tmp_path / "cut", spec, should_stop)
    assert nothing is None
    assert not any(one.is_final for one in first.checkpoints)
    second, _, again = measured(tmp_path / "cut", spec, resume_from=tuple(one.key for one in reversed(first.checkpoints)))
    assert again.keys() == columns.keys()
    assert all(again[name].tobytes() == columns[name].tobytes() for name in columns)
    hashes = [{entry["path"]: entry["sha256"] for entry in one.checkpoints[-1].files} for one in (whole, second)]
    assert hashes[0] == hashes[1]


def test_rows_beyond_a_limit_of_norms_are_left_out_of_everything(tmp_path: Path, case: Case) -> None:
    stream = statistics_spec()["stream"] | {"max_activation_norm_multiple": 1.2}
    _, found, _ = measured(tmp_path, statistics_spec(stream=stream, hook_names=["blocks.3.hook_resid_post"]))
    assert found is not None
    norms = np.linalg.norm(case.plain.rows(3), axis=1)
    limit = 1.2 * found.hook_points[0].outliers.median
    assert found.rows == (norms <= limit).sum() < case.found.rows
    assert found.hook_points[0].norm.largest <= limit
