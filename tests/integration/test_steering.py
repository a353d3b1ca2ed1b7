"""Steering of the demo's model: what a scan over coefficients must show, whatever the direction."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae_service.activations.model import LanguageModel
from sae_service.activations.unembedding import unembedding
from sae_service.errors import InvalidSpec
from sae_service.sae.inference import InferenceSAE
from sae_service.spec import ModelSpec
from tests.looked_at import in_folder, rows_of_text, sparse_sae
from tests.model_families import Families
from tests.steered import MODEL, PROMPTS, steered, steering_spec

KING, LORD, LAST = " king", " lord", "blocks.3.hook_resid_post"
LATENT = 7
HALF = MODEL | {"dtype": "float16"}


@pytest.fixture(scope="module")
def sae() -> InferenceSAE:
    return sparse_sae(rows_of_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, sae: InferenceSAE) -> dict[str, str]:
    return in_folder(tmp_path_factory.mktemp("saes") / "sae", sae)


@pytest.fixture(scope="module")
def word() -> tuple[float, ...]:
    """The direction that the final norm and the unembedding read as a word."""
    model = LanguageModel(ModelSpec.model_validate(MODEL), "cpu")
    known = unembedding(model)
    assert known is not None
    (token,) = model.encode([KING])[0]
    row = known.gain * (known.W_U[:, token] - known.W_U.mean(axis=1))
    return tuple((row - row.mean()).tolist())


@pytest.mark.parametrize("mode", ["add", "ablate"])
def test_a_coefficient_of_zero_changes_nothing(tmp_path: Path, folder: dict[str, str], mode: str) -> None:
    found, columns = steered(
        tmp_path, steering_spec(folders=[folder], latent=LATENT, mode=mode, logits=[KING], contrast=[KING, LORD])
    )
    assert found is not None
    middle = found.coefficients.index(0)
    assert found.loss[middle] == pytest.approx(found.clean_loss, abs=1e-6)
    assert abs(found.kl[middle]) < 1e-6
    for name in ("logits", "total", "parts"):
        assert np.abs(columns[name][:, middle]).max() < 5e-6, name


def test_the_parts_add_up_to_the_whole(tmp_path: Path, folder: dict[str, str]) -> None:
    found, columns = steered(
        tmp_path, steering_spec(folders=[folder], latent=LATENT, unit="row_norm", contrast=[KING, LORD], clusters=2)
    )
    assert found is not None
    assert found.contrast is not None
    names = [part.name for part in found.contrast.parts]
    assert names == ["direct", "3.attn", "3.mlp", "final_norm", "other"]
    assert np.abs(columns["total"]).max() > 0.5, "at four times the norm of a row"
    without_other = columns["parts"][..., :-1].sum(axis=-1)
    np.testing.assert_allclose(without_other, columns["total"], atol=1e-4, rtol=0)
    change = np.array(found.contrast.change)
    np.testing.assert_allclose(change, columns["total"].mean(axis=0), atol=1e-5)
    slope = np.diff(next(part.change for part in found.contrast.parts if part.name == "direct"))
    assert np.ptp(slope) < 1e-5 * np.abs(slope).max() + 1e-6, "the direct path is a line"
    assert {part.cluster for part in found.contrast.parts if part.name != "other"} == {1, 2}


@pytest.mark.parametrize("site", ["blocks.0.hook_resid_pre", "blocks.1.hook_attn_out", "blocks.1.mlp.hook_post", "hook_embed"])
def test_parts_add_up_wherever_it_is_added(tmp_path: Path, site: str) -> None:
    width = 512 if "post" in site else 128
    direction = np.random.default_rng(0).normal(size=width).tolist()
    _, columns = steered(tmp_path, steering_spec(direction=direction, hook_name=site, contrast=[KING, LORD]))
    np.testing.assert_allclose(columns["parts"][..., :-1].sum(axis=-1), columns["total"], atol=1e-4, rtol=0)
    assert np.abs(columns["total"]).max() > 0.01
    if "post" in site:
        assert not columns["parts"][..., 0].any(), "what an MLP computes on the way is in what it writes"


def test_the_direction_of_a_word_raises_its_logit_all_along_the_scan(tmp_path: Path, word: tuple[float, ...]) -> None:
    found, columns = steered(tmp_path, steering_spec(direction=word, hook_name=LAST, logits=[KING], contrast=[KING, LORD]))
    assert found is not None
    assert (np.diff(columns["logits"][..., 0], axis=1) > 0).all()
    assert (np.diff(found.logits[0].change) > 0).all()
    assert found.contrast is not None
    parts = {part.name: part.change for part in found.contrast.parts}
    assert set(parts) == {"direct", "final_norm", "other"}, "nothing comes after"


def test_clamping_and_ablating_set_what_the_latent_writes(tmp_path: Path, folder: dict[str, str], sae: InferenceSAE) -> None:
    """An ablated latent is one clamped to 0; clamped to what it is, it changes nothing."""
    prompt = [int(token) for token in np.random.default_rng(1).integers(1, 2048, 40)]
    base: dict[str, Any] = {"folders": [folder], "prompts": [prompt], "latent": LATENT, "logits": [KING]}
    found, _ = steered(tmp_path / "a", steering_spec(**base, mode="clamp", coefficients=[0.0]))
    other, _ = steered(tmp_path / "b", steering_spec(**base, mode="ablate", coefficients=[1.0]))
    assert found is not None
    assert other is not None
    assert found.largest_activation > 0
    np.testing.assert_allclose((found.kl, found.loss), (other.kl, other.loss), atol=1e-6)
    assert found.kl[0] > 1e-6
    active = int(np.argmax(found.prompts[0].activations))
    fields = base | {"prompts": [prompt[: active + 1]], "positions": "last"}
    same, _ = steered(tmp_path / "c", steering_spec(**fields, mode="clamp", coefficients=[found.largest_activation]))
    assert same is not None
    assert abs(same.kl[0]) < 1e-6
    assert (same.clean_loss, same.loss) == (None, (None,)), "no token comes after the last"


def test_positions_that_training_leaves_out_are_not_edited_and_not_counted(tmp_path: Path, word: tuple[float, ...]) -> None:
    fields: dict[str, Any] = {"direction": word, "hook_name": LAST, "coefficients": [8.0]}
    found, _ = steered(tmp_path / "a", steering_spec(**fields, prompts=[[0, 410, 269]], exclude=[0, 410], logits=[KING]))
    alone, _ = steered(tmp_path / "b", steering_spec(**fields, prompts=[[0, 410, 269]], positions="last", logits=[KING]))
    assert found is not None
    assert alone is not None
    assert (found.kl, found.logits) == (alone.kl, alone.logits)
    assert found.row_norm != alone.row_norm, "the mean is over what counts"


def test_a_spliced_sae_and_its_error_make_the_clean_model(tmp_path: Path, folder: dict[str, str]) -> None:
    found, _ = steered(tmp_path, steering_spec(folders=[folder], latent=LATENT))
    assert found is not None
    left = found.error_term
    assert left is not None
    assert left.error_added_back == pytest.approx(left.clean, abs=1e-5)
    assert left.error_removed == pytest.approx(left.spliced, abs=1e-5)
    assert left.spliced > left.clean
    assert left.reconstruction_removed > left.clean
    assert 0 < left.error_share < 1
    assert left.positions == sum(len(one.tokens) - 2 for one in found.prompts), "all but BOS, and the last has no successor"


def test_a_scan_of_128_in_parts_is_the_same(tmp_path: Path, folder: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    fields: dict[str, Any] = {"folders": [folder], "latent": LATENT, "coefficients": {}, "contrast": [KING, LORD]}
    whole, _ = steered(tmp_path / "a", steering_spec(**fields))
    monkeypatch.setattr("sae_service.activations.pushed.BYTES_AT_ONCE", 1 << 20)
    parts, _ = steered(tmp_path / "b", steering_spec(**fields))
    assert whole is not None
    assert parts is not None
    assert (len(whole.coefficients), whole.coefficients[0], whole.coefficients[-1]) == (128, -10, 10)
    np.testing.assert_allclose(whole.kl, parts.kl, atol=1e-6)


def test_the_same_seed_writes_the_same_text_and_bytes(tmp_path: Path, folder: dict[str, str]) -> None:
    wanted = {"coefficients": [0, 0, 400.0], "tokens": 6, "seed": 3}
    job = steering_spec(folders=[folder], latent=LATENT, continuations=wanted, mode="add")
    first, second = (steered(tmp_path / name, job)[0] for name in "ab")
    assert first is not None
    assert first == second
    zero, again, far = (one.tokens for one in first.continuations[:3])
    assert zero == again
    assert zero != far
    assert len(zero) == 6
    greedy = steering_spec(folders=[folder], latent=LATENT, mode="clamp", continuations=wanted | {"temperature": 0})
    clamped, _ = steered(tmp_path / "c", greedy)
    assert clamped is not None
    assert clamped.continuations[0].tokens == clamped.continuations[1].tokens


def test_a_job_that_is_to_stop_leaves_nothing(tmp_path: Path, word: tuple[float, ...]) -> None:
    job = steering_spec(direction=word, hook_name=LAST)
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 1

    assert steered(tmp_path, job, should_stop=stop)[0] is None
    assert not list(tmp_path.rglob("*.json"))


def wrong(fields: dict[str, Any]) -> Callable[[Path], Any]:
    return lambda folder: steered(folder, steering_spec(**{"direction": [1.0] * 128, "hook_name": LAST} | fields))


@pytest.mark.parametrize(
    ("fields", "pointer", "text"),
    [
        ({"coefficients": [0, 1e30], "model": HALF}, "/coefficients", "1e+30"),
        ({"continuations": {"coefficients": [1e30]}, "model": HALF}, "/continuations/coefficients", "1e+30"),
        ({"continuations": {"coefficients": [1], "tokens": 126}}, "/continuations/tokens", "at most 124"),
        ({"prompts": ["the king " * 100]}, "/prompts/0", "context is 128"),
        ({"prompts": ["a", [1, 2048]]}, "/prompts/1", "0 to 2047"),
        ({"prompts": [[0, 0]]}, "/prompts/0", "left out"),
        ({"logits": ["kingdoms of Israel"]}, "/logits/0", "tokens"),
        ({"contrast": [KING, 2048]}, "/contrast/1", "0 to 2047"),
        ({"direction": [1.0] * 64}, "/direction", "128"),
        ({"hook_name": "blocks.1.other.hook_thing"}, "/hook_name", "no hook point"),
        ({"positions": "last", "prompts": [[410, 0]]}, "/prompts/0", "last token"),
    ],
)
def test_what_cannot_be_steered_says_its_field(tmp_path: Path, fields: dict[str, Any], pointer: str, text: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        wrong(fields)(tmp_path)
    assert (caught.value.param, text in caught.value.message) == (pointer, True), caught.value
    assert not list(tmp_path.rglob("*.json")), "nothing half-made stays"


def test_a_latent_that_is_not_there_is_refused(tmp_path: Path, folder: dict[str, str]) -> None:
    with pytest.raises(InvalidSpec, match="0 to 95") as caught:
        steered(tmp_path, steering_spec(folders=[folder], latent=96))
    assert caught.value.param == "/latent"


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2", "granite"])
def test_other_families_are_steered_too(families: Families, tmp_path: Path, family: str) -> None:
    direction = np.random.default_rng(0).normal(size=64).tolist()
    fields: dict[str, Any] = {"direction": direction, "hook_name": "blocks.0.hook_resid_post", "prompts": PROMPTS}
    job = steering_spec(model={"name": str(families.path(family))}, contrast=[KING, LORD], **fields)
    found, columns = steered(tmp_path, job)
    assert found is not None
    assert abs(found.kl[4]) < 1e-6
    np.testing.assert_allclose(columns["parts"].sum(axis=-1), columns["total"], atol=1e-4)
    if family in ("llama", "gpt_neox"):
        assert np.abs(columns["parts"][..., -1]).max() < 1e-4, "nothing is left over"
