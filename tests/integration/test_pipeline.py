"""The whole job on the model and the text that ship with the package."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

from sae_service.errors import DataNotFound, InvalidSpec, ModelNotFound, NonFiniteLoss, StorageFailure
from sae_service.evaluation.on_text import HeldOutText
from sae_service.storage import artifacts
from sae_service.storage.provenance import revision
from tests.conftest import DEMO
from tests.recorder import Recorder
from tests.small_jobs import KINDS, small_job, train, weights


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recorder, dict[str, bytes]]:
    return train(tmp_path_factory.mktemp("finished"), small_job())


def test_a_job_makes_three_saes_with_metrics_from_held_out_text(finished: tuple[Recorder, dict[str, bytes]]) -> None:
    recorder, files = finished
    for kind in KINDS:
        measured = json.loads(files[f"saes/{kind}_256/metrics.json"])
        assert measured["ce_loss"] < 3.3
        assert measured["ce_loss"] < measured["ce_loss_sae"] < measured["ce_loss_zero"]
        assert 0 < measured["fvu"] < 1
        assert measured["l0"] > 0
        density = measured["latent_density"]
        assert sum(density["counts"]) + density["never"] == 256
        tensors = load(files[f"saes/{kind}_256/sae_weights.safetensors"])
        assert tensors["W_enc"].shape == (128, 256)
        norms = np.linalg.norm(tensors["W_dec"], axis=1)
        np.testing.assert_allclose(norms, 1, atol=1e-4)
        folder = f"saes/{kind}_256/"
        assert artifacts.from_files({path.removeprefix(folder): files[path] for path in files if path.startswith(folder)})
    assert [row["step"] for row in recorder.rows[::3]] == [5, 10, 15, 20, 24]
    assert recorder.rows[-1]["loss"] < recorder.rows[2]["loss"]
    assert [written.step for written in recorder.checkpoints] == [7, 14, 21, 24]
    assert [written.is_final for written in recorder.checkpoints] == [False, False, False, True]


def test_the_same_seed_gives_the_same_bytes(finished: tuple[Recorder, dict[str, bytes]], tmp_path: Path) -> None:
    _, again = train(tmp_path, small_job())
    assert weights(again) == weights(finished[1])


def test_another_seed_gives_other_weights(finished: tuple[Recorder, dict[str, bytes]], tmp_path: Path) -> None:
    _, other = train(tmp_path, small_job(seed=4))
    path = "saes/gated_256/sae_weights.safetensors"
    assert other[path] != finished[1][path]


@pytest.mark.parametrize("stop_after", [9, 16, 24])
def test_a_stopped_job_goes_on_from_its_checkpoint_to_the_same_bytes(
    finished: tuple[Recorder, dict[str, bytes]], tmp_path: Path, stop_after: int
) -> None:
    recorder, nothing = train(tmp_path, small_job(), stop_after=stop_after)
    assert nothing == {}
    assert recorder.checkpoints[-1].step == stop_after, "nothing is computed twice"
    resumed, files = train(tmp_path, small_job(), resume_from=(recorder.checkpoints[-1].key,))
    assert weights(files) == weights(finished[1])
    comparable = [{k: v for k, v in row.items() if k != "tokens_per_s"} for row in resumed.rows]
    undisturbed = [{k: v for k, v in row.items() if k != "tokens_per_s"} for row in finished[0].rows]
    assert comparable == undisturbed[len(undisturbed) - len(comparable) :]


def test_a_job_whose_evaluation_fails_goes_on_from_its_last_step(
    finished: tuple[Recorder, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any) -> None:
        raise DataNotFound("the held-out text has gone")

    with monkeypatch.context() as broken:
        broken.setattr(HeldOutText, "evaluate", fails)
        with pytest.raises(DataNotFound):
            train(tmp_path, small_job())
    saved = sorted(tmp_path.glob("jobs/test/step-*24-*"))
    resumed, files = train(tmp_path, small_job(), resume_from=(str(saved[0].relative_to(tmp_path)),))
    assert weights(files) == weights(finished[1])
    assert resumed.rows == [], "no step is taken again"


@pytest.mark.parametrize("damage", ["flip a bit", "cut", "lose", "lose the manifest"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_is_used(
    finished: tuple[Recorder, dict[str, bytes]], tmp_path: Path, damage: str
) -> None:
    recorder, _ = train(tmp_path, small_job(), stop_after=16)
    keys = [written.key for written in reversed(recorder.checkpoints)]
    file = tmp_path / keys[0] / ("manifest.json" if damage == "lose the manifest" else "state/arrays.safetensors")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "flip a bit":
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:1000])
    else:
        file.unlink()
    resumed, files = train(tmp_path, small_job(), resume_from=tuple(keys))
    assert [level for level, _ in resumed.events].count("warning") == 1
    assert any(keys[0] in message for _, message in resumed.events)
    assert weights(files) == weights(finished[1])


def test_a_job_whose_checkpoints_are_all_missing_does_not_begin_anew(tmp_path: Path) -> None:
    recorder, _ = train(tmp_path / "here", small_job(), stop_after=9)
    keys = tuple(written.key for written in reversed(recorder.checkpoints))
    with pytest.raises(StorageFailure, match="SAE_SERVICE_STORAGE_URL"):
        train(tmp_path / "elsewhere", small_job(), resume_from=keys)
    assert not list((tmp_path / "elsewhere").rglob("manifest.json"))


def test_a_checkpoint_in_the_middle_is_a_usable_sae(finished: tuple[Recorder, dict[str, bytes]]) -> None:
    paths = {entry["path"] for entry in finished[0].checkpoints[0].files}
    assert {"saes/standard_256/cfg.json", "saes/standard_256/sae_weights.safetensors"} <= paths


def test_provenance_names_the_model_the_text_and_the_code(finished: tuple[Recorder, dict[str, bytes]]) -> None:
    found = json.loads(finished[1]["saes/gated_256/provenance.json"])
    assert found["model"]["revision"] == revision(str(DEMO / "model"))
    assert found["dataset"]["revision"].startswith("sha256:")
    assert {"sae-service", "jax", "torch"} <= set(found["code"])
    assert found["spec"]["stream"]["seed"] == 3


def test_provenance_and_an_event_at_the_start_say_in_which_precision_products_run(
    finished: tuple[Recorder, dict[str, bytes]]
) -> None:
    found = json.loads(finished[1]["saes/gated_256/provenance.json"])["precision"]
    assert found["model"]["products"] == found["saes"]["gated_256"] == found["figures"] == "float32"
    assert found["model"]["torch"]["float32_matmul_precision"] == "highest"
    assert found["model"]["torch"]["cuda.matmul.allow_tf32"] is False
    assert found["jax"] == {"float32": {"jax_default_matmul_precision": "float32", "preferred_element_type": "float32"}}
    said = "Matrix products: the language model float32, the SAEs' training float32, figures and files float32."
    assert [message.startswith(said) for _, message in finished[0].events].count(True) == 1


def test_an_event_at_the_start_says_by_which_operations_steps_are_made(finished: tuple[Recorder, dict[str, bytes]]) -> None:
    (said,) = [message for _, message in finished[0].events if message.startswith("Operations on latents: ")]
    assert said.startswith("Operations on latents: dense (")
    assert "gated_256" in said


def test_a_job_shows_life_with_every_step_and_every_forward_pass(tmp_path: Path) -> None:
    signs: list[None] = []
    train(tmp_path, small_job(), alive=lambda: signs.append(None))
    steps, rows_a_pass, evaluation_passes = 24, 4 * 128, 2
    assert len(signs) >= steps + steps * 256 // rows_a_pass + evaluation_passes


def test_logging_more_often_changes_nothing(finished: tuple[Recorder, dict[str, bytes]], tmp_path: Path) -> None:
    _, files = train(tmp_path, small_job() | {"log_every": 1})
    path = "saes/jumprelu_256/sae_weights.safetensors"
    assert files[path] == finished[1][path]


@pytest.mark.parametrize(
    ("change", "error", "param", "text"),
    [
        ({"context_size": 256}, InvalidSpec, "/stream/context_size", "128"),
        ({"model": {"name": "/nowhere"}}, ModelNotFound, "/stream/model/name", "config.json"),
        ({"model": {"name": "nobody/nothing"}}, ModelNotFound, "/stream/model/name", "nobody/nothing"),
        ({"dataset": {"path": "/nowhere"}}, DataNotFound, "/stream/dataset/path", "/nowhere"),
        ({"dataset": {"path": str(DEMO / "text"), "column": "body"}}, InvalidSpec, "/stream/dataset/column", "text"),
        ({"dataset": {"path": str(DEMO / "text"), "split": "dev"}}, DataNotFound, "/stream/dataset/split", "dev"),
    ],
)
def test_what_cannot_run_is_refused_before_training(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], param: str, text: str
) -> None:
    with pytest.raises(error) as caught:
        train(tmp_path, small_job(**change))
    assert caught.value.param == param  # pyright: ignore[reportAttributeAccessIssue]
    assert text in str(caught.value)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_an_unknown_hook_point_is_refused_with_close_names(tmp_path: Path) -> None:
    job = copy.deepcopy(small_job())
    job["saes"][1]["hook_name"] = "blocks.2.hook_resid_pots"
    with pytest.raises(InvalidSpec, match=r"blocks\.2\.hook_resid_post"):
        train(tmp_path, job)


def test_a_loss_that_is_not_finite_stops_the_job_and_keeps_no_such_state(tmp_path: Path) -> None:
    job = small_job()
    job["saes"][0]["optimizer"] = {"lr": 1e30, "clip_norm": None}
    with pytest.raises(NonFiniteLoss, match="learning rate"):
        train(tmp_path, job)
    assert not list(tmp_path.rglob("manifest.json"))
