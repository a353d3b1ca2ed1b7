"""`sae-service evaluate` and `sae-service compare`, on SAEs that a job has trained and on those of others."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from sae_service.cli import app
from sae_service.errors import InvalidSpec
from sae_service.evaluation import of_folders
from sae_service.formats import FORMATS, saelens
from sae_service.formats.folder import load
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.sites import Sites
from tests.conftest import DEMO
from tests.saes import DESCRIPTION, of_sites, random_sae
from tests.small_jobs import small_job, train

TEXT = ["--model", str(DEMO / "model"), "--dataset", str(DEMO / "text"), "--held-out-split", "test", "--tokens", "1024"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a gated SAE that a job has trained."""
    folder, job = tmp_path_factory.mktemp("trained"), small_job(tokens=8 * 256)
    train(folder, job | {"saes": job["saes"][1:2]})
    return next(folder.glob("jobs/test/step-000000008-*/saes/gated_256"))


def sae_service(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def written(folder: Path, format: str, choice: str, **sizes: int) -> Path:
    folder.mkdir()
    for name, content in FORMATS[format].to_files(random_sae(choice, **sizes), DESCRIPTION).items():
        (folder / name).write_bytes(content)
    return folder


def test_an_sae_in_a_folder_has_the_figures_that_its_job_has_measured(trained: Path, tmp_path: Path) -> None:
    measured: dict[str, Any] = json.loads((trained / "metrics.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    for name, content in FORMATS["dictionary_learning"].to_files(load(trained), DESCRIPTION).items():
        (other / name).write_bytes(content)
    for folder in (trained, other):
        done = sae_service("evaluate", folder, *TEXT, "--hook", "blocks.1.hook_resid_post", "--json")
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        assert set(found) == set(measured) - {"dead_share", "tokens_per_s"}
        for name, value in found.items():
            assert value == (pytest.approx(measured[name], rel=1e-5) if isinstance(value, float) else measured[name])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--hook", "blocks.1.mlp.hook_post"], "have 512"),
        (["--hook", "blocks.1.hook_resid_pots"], "Close: blocks.1.hook_resid_post"),
        (["--hook", "blocks.1.hook_resid_post", "--context-size", "1"], "--context-size: must be at least 2"),
        (["--hook", "blocks.1.hook_resid_post", "--tokens", "5"], "at least context_size"),
        (["--hook", "blocks.1.hook_resid_post", "--format", "sparsify"], "sae.safetensors"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_what_to_do(trained: Path, arguments: list[str], text: str) -> None:
    refused = sae_service("evaluate", trained, *TEXT, *arguments)
    assert refused.exit_code == 2, refused.output
    assert text in refused.output


def random_transcoder(read: str, write: str, d_write: int = 128) -> InferenceSAE:
    sites = Sites(((read, 128),), ((write, d_write),))
    wide, narrow = (random_sae("relu", d_in=width, d_sae=64) for width in (128, d_write))
    return wide.replace(W_dec=narrow.W_dec, b_dec=narrow.b_dec, sites=sites)


def test_a_transcoder_is_measured_where_its_file_says_that_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = {
        "model": {"name": str(DEMO / "model")}, "dataset": {"path": str(DEMO / "text"), "held_out_split": "test"},
        "tokens": 512, "batch": 1,
    }  # fmt: skip
    read, write = "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"

    def measured(sae: InferenceSAE, hook_name: str = read) -> dict[str, Any]:
        with monkeypatch.context() as patched:
            if sae.sites is None:
                # As from a file that does not say where.
                patched.setattr(of_folders, "load", lambda *_: sae)
            else:
                for name, content in saelens.to_own_files(sae, of_sites(sae.sites)).items():
                    (tmp_path / name).write_bytes(content)
            return of_folders.measured(tmp_path, None, hook_name, stream)

    found = measured(random_transcoder(read, write))
    elsewhere = measured(random_transcoder(read, read).replace(sites=None))
    assert found["ce_loss"] == elsewhere["ce_loss"]
    assert found["ce_loss_zero"] != elsewhere["ce_loss_zero"]
    for sae, hook_name, message in (
        (random_transcoder(read, write, d_write=100), read, "writes rows of 100 numbers, and those of blocks.1.hook_mlp_out"),
        (random_transcoder(read, write), write, "says that it reads blocks.1.mlp.hook_in and writes blocks.1.hook_mlp_out"),
        (random_transcoder(write, read), write, "hook_name_out must come after"),
        (random_transcoder(read, write, d_write=100).replace(sites=None), read, "does not say where"),
    ):
        with pytest.raises(InvalidSpec, match=message.replace(".", r"\.")):
            measured(sae, hook_name)


def test_an_sae_has_all_the_directions_of_itself_in_any_format(tmp_path: Path) -> None:
    a, b = (written(tmp_path / name, name, "relu", seed=5) for name in ("saelens", "gemma_scope"))
    found = json.loads(sae_service("compare", a, b, "--json").stdout)
    for name in ("mmcs_a_to_b", "mmcs_b_to_a", "found_share_a_to_b", "found_share_b_to_a", "mcc", "uniqueness"):
        assert found[name] == pytest.approx(1, abs=1e-6)
    assert (found["d_in"], found["d_sae_a"], found["d_sae_b"]) == (6, 24, 24)
    assert sum(found["max_cosines_a_to_b"]) == 24
    assert found["random_mmcs_a_to_b"] < 0.95
    assert not any("truth" in name for name in found)


def test_the_directions_of_two_saes_are_compared_both_ways(tmp_path: Path) -> None:
    a = written(tmp_path / "a", "saelens", "relu", d_in=16, d_sae=8)
    b = written(tmp_path / "b", "dictionary_learning", "topk", d_in=16, d_sae=20, seed=5)
    found = json.loads(sae_service("compare", a, b, "--json").stdout)
    rows = [np.asarray(load(folder).W_dec) for folder in (a, b)]
    cosines = rows[0] @ rows[1].T
    assert found["mmcs_a_to_b"] == pytest.approx(cosines.max(axis=1).mean(), abs=1e-5)
    assert found["mmcs_b_to_a"] == pytest.approx(cosines.max(axis=0).mean(), abs=1e-5)
    table = sae_service("compare", a, b).output
    assert all(word in table for word in ("mean max cosine similarity", "MCC", "uniqueness", "share above 0.9", "█"))


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    a, b = written(tmp_path / "a", "saelens", "relu"), written(tmp_path / "b", "saelens", "relu", d_in=7)
    refused = sae_service("compare", a, b)
    assert (refused.exit_code, "rows of 6 and 7" in refused.output) == (2, True)
    nothing = sae_service("compare", a, tmp_path)
    assert (nothing.exit_code, "params.npz" in nothing.output) == (2, True)
    for name, content in FORMATS["gemma_scope"].to_files(random_sae("relu"), DESCRIPTION).items():
        (a / name).write_bytes(content)
    several = sae_service("compare", a, b)
    assert (several.exit_code, "Name one with --format" in several.output) == (2, True)
