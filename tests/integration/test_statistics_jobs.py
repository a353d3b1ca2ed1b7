"""Jobs that measure a model, through the service: what is refused, and what is shown to a program and on the command line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from safetensors.numpy import load_file
from typer.testing import CliRunner

from sae_service.analysis.statistics.records import Statistics
from sae_service.cli import app
from sae_service.client import Client
from sae_service.errors import DataNotFound, InvalidSpec, NotFound
from tests.conftest import DEMO
from tests.finished_jobs import Finished
from tests.measured import STREAM, measured, statistics_spec
from tests.model_families import Families
from tests.served import served

HOOKS = ["blocks.1.hook_resid_post", "blocks.3.mlp.hook_post"]


@pytest.fixture(scope="module")
def done(finished: Finished, finished_api: TestClient) -> str:
    spec = statistics_spec(tokens=960, attention_tokens=480, cut_positions=4, hook_names=HOOKS)
    return finished.submitted(finished_api, spec)


@pytest.fixture(scope="module")
def address(finished: Finished, done: str) -> Iterator[str]:
    with served(finished.settings) as url:
        yield f"http://{url}"


def stream(**fields: Any) -> dict[str, Any]:
    return {"stream": STREAM | fields}


@pytest.mark.parametrize(
    ("fields", "pointer", "text"),
    [
        ({"hook_names": ["blocks.1.hook_resid_pots"]}, "/hook_names/0", "Close: blocks.1.hook_resid_post"),
        ({"hook_names": [HOOKS[0], "blocks.9.hook_resid_post"]}, "/hook_names/1", "its layers are 0 to 3"),
        ({"hook_names": ["blocks.1.attn.hook_pattern"]}, "/hook_names/0", "not one vector"),
        ({"hook_names": [HOOKS[0], HOOKS[0]]}, "/hook_names", "once"),
        (stream(context_size=129), "/stream/context_size", "context of 128"),
        (stream(dataset={"path": str(DEMO / "text"), "split": "dev"}), "/stream/dataset/split", "has no split 'dev'"),
        (stream(model={"name": "./nowhere"}), "/stream/model/name", ""),
        (stream(cache="use"), "/stream/cache", "leave it out"),
        ({"stream": {"synthetic": {"n_features": 4, "d_in": 4}}}, "/stream/synthetic", "no model"),
        ({"tokens": 47}, "/tokens", "context_size (48)"),
        ({"cut_position": 5}, "/cut_position", "did you mean 'cut_positions'"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_its_field(
    finished_api: TestClient, fields: dict[str, Any], pointer: str, text: str
) -> None:
    answer = finished_api.post("/v1/jobs", json=statistics_spec(**fields))
    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    assert (error["pointer"], text in error["detail"]) == (pointer, True), error


def test_a_hook_point_that_only_the_model_knows_to_be_absent_ends_the_job_with_its_field(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match="no hook point") as caught:
        measured(tmp_path, statistics_spec(hook_names=[HOOKS[0], "blocks.1.other.hook_thing"]))
    assert caught.value.param == "/hook_names/1"
    assert not list(tmp_path.rglob("*.json")), "nothing half-made stays"


@pytest.mark.parametrize(("document", "field"), [("", "/stream/dataset/"), ("a few words", "/stream/dataset/path")])
def test_text_without_a_whole_row_is_refused_with_its_field(tmp_path: Path, document: str, field: str) -> None:
    (tmp_path / "short.jsonl").write_text(json.dumps({"text": document}) + "\n")
    dataset = {"path": str(tmp_path / "short.jsonl")}
    with pytest.raises((InvalidSpec, DataNotFound)) as caught:
        measured(tmp_path / "out", statistics_spec(**stream(dataset=dataset)))
    assert str(caught.value.param).startswith(field)
    assert not list(tmp_path.rglob("out/**/*.json"))


def test_what_was_measured_is_told_over_rest_and_says_how_to_train(finished_api: TestClient, done: str) -> None:
    answer = finished_api.get(f"/v1/jobs/{done}/statistics")
    assert answer.status_code == 200, answer.text
    found = Statistics.model_validate(answer.json())
    assert [one.hook_name for one in found.hook_points] == HOOKS
    assert [len(one.heads.distance or ()) for one in found.layers] == [4, 4, 4, 4]
    assert [one.about for one in found.advice] == ["dtype", "dtype", "normalization", "exclude", "max_activation_norm_multiple"]
    assert all(one.number is not None and one.hook_name in HOOKS for one in found.advice)
    job = finished_api.get(f"/v1/jobs/{done}").json()
    assert job["status"] == "succeeded"
    listed = next(one for one in finished_api.get("/v1/jobs").json()["data"] if one["id"] == done)
    assert (listed["summary"]["kind"], listed["summary"]["saes"]) == ("statistics", [])
    assert done not in json.dumps(finished_api.get("/v1/saes").json()), "it has no SAEs"


def test_only_a_finished_job_of_this_kind_has_statistics(finished_api: TestClient, done: str, trained: str) -> None:
    answer = finished_api.get(f"/v1/jobs/{trained}/statistics")
    assert (answer.status_code, "its kind is train" in answer.json()["detail"]) == (404, True)
    waiting = finished_api.post("/v1/jobs", json=statistics_spec()).json()["id"]
    answer = finished_api.get(f"/v1/jobs/{waiting}/statistics/file")
    assert (answer.status_code, "is queued" in answer.json()["detail"]) == (404, True)
    finished_api.post(f"/v1/jobs/{waiting}/cancel")
    assert finished_api.get("/v1/jobs/job_x/statistics").status_code == 404


def test_a_program_reads_it_and_a_part_of_the_columns(address: str, done: str, tmp_path: Path) -> None:
    client = Client(address)
    assert client.statistics(done).rows < 960
    columns = load_file(client.download_statistics(done, tmp_path / "columns.safetensors"))
    assert columns[f"{HOOKS[0]}/variance"].shape == (128,)
    assert columns["blocks.0/attention_distance"].shape == (4,)
    assert np.isfinite(columns["cut_cosines"]).all()
    with pytest.raises(NotFound):
        client.statistics("job_x")


def test_the_command_line_shows_and_draws_it(address: str, done: str, tmp_path: Path) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["statistics", *arguments, "--url", address])

    shown = run("show", done, "--picture", str(tmp_path / "p.png"), "--columns", str(tmp_path / "c.safetensors"))
    assert shown.exit_code == 0, shown.output
    assert "Residual norms grow" in shown.output
    assert "float16" in shown.output
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "c.safetensors").stat().st_size > 1000
    assert json.loads(run("show", done, "--json").output)["object"] == "job.statistics"
    model, text = STREAM["model"]["name"], STREAM["dataset"]["path"]
    made = run("measure", "--model", model, "--dataset", text, "--split", "test", "--tokens", "2k", "--hook", HOOKS[0])
    assert made.exit_code == 0, made.output
    assert Client(address).job(made.output.strip()).spec["hook_names"] == [HOOKS[0]]
    Client(address).cancel(made.output.strip())
    wrong = run("measure", "--model", model, "--dataset", text, "--split", "test", "--hook", "blocks.7.hook_resid_post")
    assert (wrong.exit_code, "--hook: the model has no layer 7" in wrong.output) == (2, True), wrong.output


@pytest.mark.parametrize("family", ["llama", "falcon", "gpt_oss", "gemma2", "phi3", "bloom"])
def test_other_families_are_measured_too(families: Families, tmp_path: Path, family: str) -> None:
    fields = stream(model={"name": str(families.path(family))})
    _, found, _ = measured(tmp_path, statistics_spec(tokens=480, attention_tokens=480, cut_positions=4, **fields))
    assert found is not None
    for one in found.layers:
        assert one.residual is not None
        assert one.growth is not None
        assert one.cut_cosines is not None
        assert len(one.heads.distance or ()) == len(one.heads.ov_spectral or ()) == 4, family
