"""What a job says of latents is what Hugging Face and NumPy say; where it stops does not matter."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae_service.analysis.results import Table
from sae_service.errors import InvalidSpec, SAEServiceError
from sae_service.sae.inference import InferenceSAE
from tests.brute_latents import Brute, lens, read_rows
from tests.looked_at import STREAM, in_folder, latents_spec, looked, rows_of_text, sparse_sae
from tests.recorder import Recorder
from tests.saes import random_sae

WIDTH, BEST, PER_QUANTILE, SEED, N_ROWS = 32, 6, 2, 5, 6000 // 64
SIZES: dict[str, Any] = {"passage_tokens": WIDTH, "best": BEST, "per_quantile": PER_QUANTILE, "seed": SEED}
SAES = {"above": {}, "largest": {"k": 8, "seed": 1}}


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return rows_of_text()


@pytest.fixture(scope="module")
def saes(x: np.ndarray) -> dict[str, InferenceSAE]:
    return {name: sparse_sae(x, **given) for name, given in SAES.items()}


@pytest.fixture(scope="module")
def folders(saes: dict[str, InferenceSAE], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    return [in_folder(tmp_path_factory.mktemp("saes") / name, sae) for name, sae in saes.items()]


@pytest.fixture(scope="module")
def found(folders: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Recorder, dict[str, Table]]:
    return looked(tmp_path_factory.mktemp("look"), latents_spec(*folders, **SIZES))


@pytest.fixture(scope="module")
def brute(saes: dict[str, InferenceSAE]) -> dict[str, Brute]:
    tokens, rows = read_rows(N_ROWS, STREAM["context_size"])
    return {name: Brute.of(sae, tokens, rows) for name, sae in saes.items()}


def ten(d_sae: int = 96) -> list[int]:
    """Ten random latents, and the one that never fires."""
    return [0, *np.random.default_rng(7).choice(np.arange(1, d_sae), 10, replace=False).tolist()]


def in_slot(table: Table, latent: int, slot: int) -> tuple[int, np.ndarray]:
    """The number of the passage in a slot, -1 if there is none, and the activations there."""
    row = table.latent(latent)
    dense = np.zeros(WIDTH)
    if (index := int(row["passages"][slot])) < 0:
        return -1, dense
    first, last = map(int, row["offsets"][slot : slot + 2])
    part = table.rows({"positions": [(first, last)], "activations": [(first, last)]})
    dense[part["positions"]] = part["activations"]
    return int(table.whole("passage_numbers")[index]), dense


@pytest.mark.parametrize("name", SAES)
def test_densities_and_means_are_those_of_all_activations(
    found: tuple[Recorder, dict[str, Table]], brute: dict[str, Brute], name: str
) -> None:
    table, acts = found[1][name], brute[name].acts
    n_tokens = int((brute[name].tokens != 0).sum())
    assert table.about["n_tokens"] == n_tokens, "positions that are left out are not counted"
    for latent in ten():
        fired = acts[:, :, latent][acts[:, :, latent] > 0]
        row = table.latent(latent)
        assert row["count"] == len(fired)
        np.testing.assert_allclose(row["density"], len(fired) / n_tokens, rtol=1e-6)
        np.testing.assert_allclose(row["largest"], fired.max(initial=0), rtol=1e-4)
        np.testing.assert_allclose(row["mean"], fired.mean() if len(fired) else 0, rtol=1e-4)
        assert row["histogram"].sum() == len(fired)


@pytest.mark.parametrize("name", SAES)
def test_the_strongest_passages_are_those_of_all_passages(
    found: tuple[Recorder, dict[str, Table]], brute: dict[str, Brute], name: str
) -> None:
    table = found[1][name]
    numbers, tokens = table.whole("passage_numbers"), table.whole("passage_tokens")
    np.testing.assert_array_equal(tokens, brute[name].tokens.reshape(-1, WIDTH)[numbers])
    for latent in ten():
        wanted = brute[name].strongest(latent, WIDTH, BEST)
        shown = [in_slot(table, latent, slot) for slot in range(BEST)]
        assert [number for number, _ in shown if number >= 0] == wanted
        for number, acts in shown[: len(wanted)]:
            np.testing.assert_allclose(acts, brute[name].passages(latent, WIDTH)[number], rtol=1e-4, atol=1e-5)
        peaks = brute[name].passages(latent, WIDTH)[wanted].argmax(axis=1) if wanted else []
        spoken = [int(brute[name].tokens.reshape(-1, WIDTH)[number, place]) for number, place in zip(wanted, peaks, strict=True)]
        assert table.latent(latent)["peak_tokens"].tolist() == spoken + [-1] * (BEST - len(wanted))


@pytest.mark.parametrize("name", SAES)
def test_passages_of_quantiles_are_drawn_from_all_in_which_a_latent_fires(
    found: tuple[Recorder, dict[str, Table]], brute: dict[str, Brute], name: str
) -> None:
    table = found[1][name]
    for latent in ten():
        wanted = brute[name].of_quantiles(latent, WIDTH, PER_QUANTILE, SEED)
        slots = [BEST + tenth * PER_QUANTILE for tenth in range(10)]
        shown = [[in_slot(table, latent, first + index)[0] for index in range(PER_QUANTILE)] for first in slots]
        assert [[number for number in tenth if number >= 0] for tenth in shown] == wanted


def test_tokens_are_those_of_the_logit_lens(found: tuple[Recorder, dict[str, Table]], saes: dict[str, InferenceSAE]) -> None:
    gain, tokens = lens()
    table, W_dec = found[1]["above"], np.asarray(saes["above"].W_dec, np.float64)
    for latent in ten():
        direction = W_dec[latent]
        logits = tokens @ ((direction - direction.mean()) * gain)
        logits -= logits.mean()
        row, order = table.latent(latent), np.argsort(-logits)
        assert row["raised_tokens"].tolist() == order[:10].tolist()
        assert row["lowered_tokens"].tolist() == order[: -11:-1].tolist()
        np.testing.assert_allclose(row["raised_logits"], logits[order[:10]], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(row["lowered_logits"], logits[order[:-11:-1]], rtol=1e-3, atol=1e-5)
        wanted, _ = np.histogram(logits, bins=50)
        assert np.abs(np.cumsum(row["logit_histogram"] - wanted)).max() <= 2, "one at an edge may be on either side"


def test_neighbours_are_by_cosine_and_neurons_by_correlation(
    found: tuple[Recorder, dict[str, Table]], saes: dict[str, InferenceSAE], brute: dict[str, Brute]
) -> None:
    table, W_dec = found[1]["above"], np.asarray(saes["above"].W_dec, np.float64)
    cosines = W_dec @ W_dec.T - 2 * np.eye(len(W_dec))
    for latent in ten():
        row = table.latent(latent)
        assert row["nearest_latents"].tolist() == np.argsort(-cosines[latent])[:10].tolist()
        np.testing.assert_allclose(row["nearest_cosines"], np.sort(cosines[latent])[: -11:-1], atol=1e-5)
    tokens, rows = read_rows(N_ROWS, STREAM["context_size"])
    counted, latent = tokens != 0, ten()[1]
    wanted = np.corrcoef(brute["above"].acts[counted][:, latent], rows[counted].T)[0, 1:]
    assert table.latent(latent)["neurons"].tolist() == np.argsort(-np.abs(wanted))[:10].tolist()


def test_tokens_are_shown_as_they_stand_in_the_text(found: tuple[Recorder, dict[str, Table]]) -> None:
    table = found[1]["above"]
    text = "".join(table.vocabulary[token] for token in table.whole("passage_tokens")[3])
    assert " the " in text or " and " in text or " to " in text


def files_of(folder: Path) -> dict[str, bytes]:
    """The final files of a look."""
    (final,) = (path.parents[2] for path in folder.rglob("above/latents.json"))
    return {str(path.relative_to(final)): path.read_bytes() for path in final.rglob("latents.*")}


@pytest.mark.parametrize("stop_after", [0, 3, 11])
def test_a_stop_in_the_middle_changes_no_byte(
    found: tuple[Recorder, dict[str, Table]], folders: list[dict[str, str]], tmp_path: Path, stop_after: int
) -> None:
    job, asked = latents_spec(*folders, **SIZES), iter([False] * (stop_after + 1))
    recorder, nothing = looked(tmp_path, job, should_stop=lambda: next(asked, True))
    assert nothing == {}
    assert not list(tmp_path.rglob("latents.json")), "nothing half-made stays"
    keys = tuple(written.key for written in reversed(recorder.checkpoints))
    resumed, tables = looked(tmp_path, job, resume_from=keys)
    assert set(tables) == set(SAES)
    undisturbed = found[1]["above"]
    assert undisturbed.storage.root is not None
    assert files_of(tmp_path) == files_of(undisturbed.storage.root)
    assert resumed.rows[-1]["step"] == found[0].rows[-1]["step"]


@pytest.mark.parametrize(
    ("content", "fields", "param", "text"),
    [
        ('{"text": "Once."}', {}, "/dataset/path", "row of 64 tokens"),
        ('{"text": ""}', {}, "/dataset/column", "has no text"),
        (json.dumps({"text": [5] * 200}), {"exclude": [0, 5]}, "/dataset/path", "a position counts"),
    ],
)
def test_text_without_tokens_is_an_error_with_the_field(
    folders: list[dict[str, str]], tmp_path: Path, content: str, fields: dict[str, Any], param: str, text: str
) -> None:
    (tmp_path / "text.jsonl").write_text(f"{content}\n")
    job = latents_spec(folders[0], stream=STREAM | fields, dataset={"path": str(tmp_path / "text.jsonl")})
    with pytest.raises(SAEServiceError, match=text) as caught:
        looked(tmp_path / "look", job)
    assert caught.value.param == param
    assert not list((tmp_path / "look").rglob("*.json")), "nothing half-made stays"


def test_an_sae_of_another_width_is_an_error_with_the_field(tmp_path: Path) -> None:
    folder = in_folder(tmp_path / "narrow", random_sae("relu", d_in=16))
    with pytest.raises(InvalidSpec, match="reads rows of 16 numbers") as caught:
        looked(tmp_path / "look", latents_spec(folder))
    assert caught.value.param == "/folders/0"
