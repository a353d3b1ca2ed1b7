"""The training process opens nothing outside the allowed folders, whatever the API has seen or let through."""

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sae_service import preflight
from sae_service.activations.model import LanguageModel
from sae_service.activations.text import load_arguments, open_text
from sae_service.errors import DataNotFound, InvalidSpec, ModelNotFound, SAEServiceError
from sae_service.readable import Roots
from sae_service.spec import DatasetSpec, JobSpec, ModelSpec
from tests.conftest import DEMO
from tests.integration.supervised import Worker

ROOT = Path(__file__).parents[2]

SHARDS = "model.safetensors.index.json"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An allowed folder with a model and text, and the same things outside of it."""
    for place in ("root", "outside"):
        (tmp_path / place / "text").mkdir(parents=True)
        (tmp_path / place / "text" / "train.jsonl").write_text('{"text": "a"}\n')
        shutil.copytree(DEMO / "model", tmp_path / place / "model")
    (tmp_path / "outside" / "text" / "secret.jsonl").write_text('{"text": "secret"}\n')
    return tmp_path / "root"


def refusal(look: Callable[[], Any]) -> SAEServiceError:
    with pytest.raises(SAEServiceError) as caught:
        look()
    return caught.value


def of_model(root: Path, spec: dict[str, Any], name: str) -> list[SAEServiceError]:
    """The errors of the API's look, and of the training process."""
    spec["stream"]["model"]["name"] = name
    roots = Roots((root, DEMO))
    return [
        refusal(lambda: preflight.check(JobSpec.model_validate(spec), roots)),
        refusal(lambda: LanguageModel(ModelSpec(name=name), "cpu", roots)),
    ]


def of_text(root: Path, spec: dict[str, Any], path: str) -> list[SAEServiceError]:
    """The errors of the API's look, and of the training process."""
    spec["stream"]["dataset"] = {"path": path}
    roots = Roots((root, DEMO))
    return [
        refusal(lambda: preflight.check(JobSpec.model_validate(spec), roots)),
        refusal(lambda: open_text(DatasetSpec(path=path), "train", roots)),
    ]


def linked(name: str) -> Callable[[Path], None]:
    """The file of the model is a link to the one outside."""

    def change(model: Path) -> None:
        (model / name).unlink()
        (model / name).symlink_to(model.parent.parent / "outside" / "model" / name)

    return change


def linked_templates(model: Path) -> None:
    (model / "chat_templates").symlink_to(model.parent.parent / "outside")


def shards_outside(model: Path) -> None:
    (model / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"a": "../../outside/model/model.safetensors"}}
    (model / SHARDS).write_text(json.dumps(index))


@pytest.mark.parametrize(
    "change",
    [linked("model.safetensors"), linked("config.json"), linked("tokenizer.json"), linked_templates, shards_outside],
    ids=["weights", "config", "tokenizer", "templates", "index"],
)
def test_a_model_is_made_of_files_below_the_roots_only(
    root: Path, spec: dict[str, Any], change: Callable[[Path], None]
) -> None:
    change(root / "model")
    for error in of_model(root, spec, str(root / "model")):
        assert isinstance(error, InvalidSpec)
        assert error.param == "/stream/model/name"
        assert "ALLOWED_ROOTS" in error.hint


def test_a_link_that_is_swapped_after_the_look_is_not_followed(root: Path, spec: dict[str, Any]) -> None:
    (root / "now").symlink_to(root / "model")
    spec["stream"]["model"]["name"] = str(root / "now")
    preflight.check(JobSpec.model_validate(spec), Roots((root, DEMO)))
    (root / "now").unlink()
    (root / "now").symlink_to(root.parent / "outside" / "model")
    assert isinstance(refusal(lambda: LanguageModel(ModelSpec(name=str(root / "now")), "cpu", Roots((root,)))), InvalidSpec)


@pytest.mark.parametrize(
    "files",
    ["../../outside/text/*.jsonl", "/etc/passwd", "~/x", "http://127.0.0.1:{port}/x.jsonl", "file:///etc/passwd", "a/../../x",
     "zip://a.jsonl::http://127.0.0.1:{port}/a.zip", "s3://a/b.jsonl", "hf://datasets/a/b/c.jsonl"],
)  # fmt: skip
@pytest.mark.parametrize("card", ["README.md", ".huggingface.yaml"])
def test_a_readme_that_names_files_elsewhere_is_refused_and_nobody_is_asked(
    root: Path, spec: dict[str, Any], files: str, card: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        said = "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: " + json.dumps(
            files.format(port=server.getsockname()[1])
        )
        (root / "text" / card).write_text(f"---\n{said}\n---\n" if card == "README.md" else said)
        for error in of_text(root, spec, str(root / "text")):
            assert isinstance(error, InvalidSpec)
            assert error.param == "/stream/dataset/path"
            assert "secret" not in str(error)
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize("name", ["train.jsonl", "more", "README.md"])
def test_a_link_in_a_folder_of_text_does_not_lead_out(root: Path, spec: dict[str, Any], name: str) -> None:
    (root / "text" / name).unlink(missing_ok=True)
    (root / "text" / name).symlink_to(root.parent / "outside" / "text" / ("" if name == "more" else "secret.jsonl"))
    for error in of_text(root, spec, str(root / "text")):
        assert isinstance(error, InvalidSpec)
        assert "secret" not in str(error)


@pytest.mark.parametrize("name", ["json", "text", "csv", "parquet", "arrow", "pandas", "generator"])
def test_a_reader_of_datasets_is_no_dataset(root: Path, spec: dict[str, Any], name: str) -> None:
    for error in of_text(root, spec, name):
        assert isinstance(error, InvalidSpec)
        assert error.param == "/stream/dataset/path"


@pytest.mark.parametrize("what", ["model", "text"])
def test_a_folder_is_not_taken_for_a_name_on_a_hub(
    root: Path, spec: dict[str, Any], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    (root / what).rename(root / f"my_{what}")
    for error in {"model": of_model, "text": of_text}[what](root, spec, f"my_{what}"):
        assert isinstance(error, InvalidSpec)
        assert f"./my_{what}" in error.hint


def test_files_of_another_kind_than_text_are_not_read(root: Path) -> None:
    folder = root / "web"
    folder.mkdir()
    (folder / "a.h5").write_bytes(b"x")
    spec = DatasetSpec(path=str(folder))
    assert isinstance(refusal(lambda: open_text(spec, "train", Roots((root,)))), DataNotFound)
    assert load_arguments(spec, "train", Roots((root,))) == {"path": str(folder)}


def damaged_header(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{not json at all")


def cut_off(model: Path) -> None:
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[: len(content) // 2])


def pickled(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04\x95\x14\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.")


def of_unknown_type(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "nothing"}))


def without_width(model: Path) -> None:
    (model / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_embd": "many"}))


def of_many_layers(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"n_layer": 10**9, "num_hidden_layers": 10**9}))


@pytest.mark.parametrize("change", [damaged_header, cut_off, pickled, of_unknown_type, without_width, of_many_layers])
def test_a_model_that_cannot_be_read_is_said_to_be_so_at_once(root: Path, change: Callable[[Path], None]) -> None:
    change(root / "model")
    error = refusal(lambda: LanguageModel(ModelSpec(name=str(root / "model")), "cpu", Roots((root,))))
    assert isinstance(error, ModelNotFound)
    assert "weights_only" not in str(error)


def test_a_training_process_is_told_the_folders_of_its_worker(
    worker: Worker, child_runs: Callable[[str], None], tmp_path: Path
) -> None:
    told = tmp_path / "told"
    child_runs(f"import sys; open({str(told)!r}, 'wb').write(sys.stdin.buffer.raw.readline())")
    worker.supervisor.work(worker.job_id, 1)
    assert json.loads(told.read_bytes())["readable_roots"] == list(map(str, worker.settings.readable_roots()))


def test_a_training_process_opens_nothing_outside_the_folders_that_it_is_told(root: Path, spec: dict[str, Any]) -> None:
    spec["stream"]["dataset"] = {"path": str(root.parent / "outside" / "text")}
    storage = (root / "storage").as_uri()
    assignment = {"spec": spec, "readable_roots": [str(DEMO), str(root)], "closed_folders": [],
                  "storage_url": storage, "prefix": "jobs/a", "hosts": None,
                  "resume_from": [], "begin_with": None, "lease_s": 600, "job": "job_a", "attempt": 1, "log_format": "plain",
                  "log_level": "info", "trace": None}  # fmt: skip
    command = [sys.executable, "-m", "workers.job_process"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(assignment).encode() + b"\n")
    process.stdin.flush()
    # Its input stays open: a process whose worker is gone ends without a word.
    messages = list(map(json.loads, process.stdout))
    process.communicate()
    error = messages[-1]["error"]
    assert (messages[-1]["retryable"], error["code"], error["param"]) == (False, "invalid_spec", "/stream/dataset/path")


def test_text_that_cannot_be_opened_is_said_to_be_so_at_once(root: Path) -> None:
    (root / "broken.parquet").write_bytes(b"PAR1 nothing PAR1")
    spec = DatasetSpec(path=str(root / "broken.parquet"))
    assert isinstance(refusal(lambda: open_text(spec, "train", Roots((root,)))), DataNotFound)
