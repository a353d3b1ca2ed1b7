"""What is refused before a job is queued, by looking at files."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from sae_service import preflight
from sae_service.errors import DataNotFound, InvalidSpec, ModelNotFound, SAEServiceError
from sae_service.readable import Roots
from sae_service.spec import JobSpec
from tests.conftest import DEMO


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A root with a model and text in it, and something outside of it."""
    root = tmp_path / "root"
    (root / "text").mkdir(parents=True)
    (root / "text" / "train.jsonl").write_text('{"text": "a", "id": 1}\n')
    shutil.copytree(DEMO / "model", root / "model")
    shutil.copytree(root, tmp_path / "outside")
    return root


def refused(folder: Path, spec: dict[str, Any], **names: str) -> SAEServiceError:
    """The error for a job whose model or dataset is `names`."""
    stream = spec["stream"] | {"model": {"name": names.get("model", str(folder / "model"))}}
    stream |= {"dataset": {"path": names.get("dataset", str(folder / "text"))}}
    with pytest.raises(SAEServiceError) as caught:
        preflight.check(JobSpec.model_validate(spec | {"stream": stream}), Roots((folder,)))
    return caught.value


@pytest.mark.parametrize("name", ["{root}/../outside/model", "{root}/link", "{root}/loop", "/", "~", "~no_such_user/x"])
def test_nothing_outside_the_roots_is_looked_at(folder: Path, spec: dict[str, Any], name: str) -> None:
    (folder / "link").symlink_to(folder.parent / "outside" / "model")
    (folder / "loop").symlink_to(folder / "loop")
    error = refused(folder, spec, model=name.format(root=folder))
    assert isinstance(error, InvalidSpec)
    assert error.param == "/stream/model/name"
    assert "ALLOWED_ROOTS" in error.hint
    assert refused(folder, spec, dataset=name.format(root=folder)).param == "/stream/dataset/path"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "no folder with"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "not a JSON object"),
        ("{}", "no weights"),
    ],
)
def test_a_folder_that_holds_no_model_is_refused(
    folder: Path, spec: dict[str, Any], content: str | None, text: str
) -> None:
    broken = folder / "broken"
    broken.mkdir()
    if content is not None:
        (broken / "config.json").write_text(content)
    error = refused(folder, spec, model=str(broken))
    assert isinstance(error, ModelNotFound)
    assert text in error.message


@pytest.mark.parametrize(
    ("file", "content", "text"),
    [
        ("a.jsonl", b"not json\n", "cannot be read"),
        ("a.jsonl", b"[" * 100_000, "cannot be read"),
        ("a.jsonl", b"[1]\n", "not a JSON object"),
        ("a.jsonl", b"", "a.jsonl is empty"),
        ("a.jsonl.xz", b"not xz", "cannot be read"),
        ("a.parquet", b"not parquet", "cannot be read"),
        ("a.jsonl", b'{"body": "x"}\n', "no column 'text'; it has body"),
        ("a.pdf", b"text\na\n", "is none of"),
        ("a.csv", b"body,n\na,1\n", "no column 'text'; it has body, n"),
        ("a.ndjson.zst", b"not zst", "cannot be read"),
    ],
)
def test_text_that_cannot_be_read_is_refused(
    folder: Path, spec: dict[str, Any], file: str, content: bytes, text: str
) -> None:
    (folder / file).write_bytes(content)
    error = refused(folder, spec, dataset=str(folder / file))
    assert isinstance(error, DataNotFound | InvalidSpec)
    assert text in error.message


TABLES = {
    "numbers": [[1.5, 2.5]], "bytes": [b"text"], "words": [["a", "b"]], "ids": [[1, 2]],
    "talk": [[{"role": "user", "content": "hi"}]],
    "people": [[{"from": "human", "value": "hi"}]], "flags": [True], "text": ["a"], "nothing": [None],
}  # fmt: skip


COLUMNS: list[tuple[str, dict[str, Any], str | None]] = [
    ("numbers", {}, "column 'numbers' holds lists of float; strings or lists of token ids are needed"),
    ("bytes", {}, "column 'bytes' holds values of type bytes"),
    ("words", {}, "holds lists of str"),
    ("talk", {}, "dataset.chat: true"),
    ("people", {"chat": True}, "lists of messages with role and content are needed"),
    ("flags", {}, "holds values of type"),
    ("text", {"chat": True}, "column 'text' holds strings"),
    ("text", {"rows": "kept"}, "column 'text' holds strings; lists of token ids are needed"),
    ("ids", {}, None),
    ("ids", {"rows": "kept"}, None),
    ("talk", {"chat": True}, None),
    ("nothing", {}, None),
]


@pytest.mark.parametrize(
    ("ending", "column", "fields", "said"),
    [(ending, *row) for ending in ("jsonl", "parquet", "arrow") for row in COLUMNS if (ending, row[0]) != ("jsonl", "bytes")],
)
def test_a_column_that_holds_no_documents_is_refused_by_its_type(
    folder: Path, spec: dict[str, Any], ending: str, column: str, fields: dict[str, Any], said: str | None
) -> None:
    (folder / "model" / "chat_template.jinja").write_text("{{ messages }}")
    file = folder / f"table.{ending}"
    table = pyarrow.table(TABLES)
    if ending == "jsonl":
        file.write_text(json.dumps({name: values[0] for name, values in TABLES.items() if name != "bytes"}) + "\n")
    elif ending == "parquet":
        parquet.write_table(table, file)
    else:
        with pyarrow.ipc.new_stream(file, table.schema) as sink:
            sink.write_table(table)
    dataset = {"path": str(file), "column": column, **fields}
    stream = spec["stream"] | {"model": {"name": str(folder / "model")}, "dataset": dataset}
    job = JobSpec.model_validate(spec | {"stream": stream})
    if said is None:
        preflight.check(job, Roots((folder, DEMO)))
        return
    with pytest.raises(InvalidSpec) as refused:
        preflight.check(job, Roots((folder, DEMO)))
    assert refused.value.param == "/stream/dataset/column"
    assert said in str(refused.value)


def test_the_layers_and_the_context_are_read_from_any_familys_config(folder: Path, spec: dict[str, Any]) -> None:
    config = {"text_config": {"num_hidden_layers": 1, "max_position_embeddings": 64}}
    (folder / "model" / "config.json").write_text(json.dumps(config))
    assert refused(folder, spec).param == "/stream/context_size"
    spec["stream"]["context_size"] = 64
    assert "0 to 0" in refused(folder, spec).message


@pytest.mark.parametrize(
    "name",
    [
        "blocks.0.hook_resid_post",
        "blocks.3.attn.hook_z",
        "blocks.0.attn.hook_rot_q",
        "blocks.0.attn.hook_rot_k",
        "ln_final.hook_normalized",
        "blocks.0.mamba.hook_state",
        "blocks.0.hook_mlp_in",
    ],
)
def test_hook_points_that_may_be_there_are_let_through(name: str) -> None:
    preflight.check_hook(name, 4, "llama", "/saes/0/hook_name")


def test_hub_names_are_left_to_the_training_process(spec: dict[str, Any]) -> None:
    stream = spec["stream"] | {"model": {"name": "gpt2"}, "dataset": {"path": "some/text"}}
    preflight.check(JobSpec.model_validate(spec | {"stream": stream}), Roots(()))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("blocks.4.hook_resid_post", "0 to 3"),
        ("blocks.0.hook_resid_pots", "blocks.0.hook_resid_post"),
        ("hook_embedd", "hook_embed"),
        ("blocks.0.attn.hook_pattern", "not one vector"),
        ("blocks.0.attn.hook_attn_scores", "not one vector"),
        ("ln_final.hook_scale", "not one vector"),
        ("embed.hook_in", "not one vector"),
        ("blocks.0.attn.hook_result", "Use blocks.0.attn.hook_z."),
        ("blocks.0.hook_q_input", "Use blocks.0.hook_resid_pre."),
        ("blocks.0.attn.qkv.hook_out", "Use blocks.0.attn.hook_q."),
    ],
)
def test_a_hook_point_that_cannot_be_trained_on_is_refused(
    folder: Path, spec: dict[str, Any], name: str, text: str
) -> None:
    spec["saes"][1]["hook_name"] = name
    error = refused(folder, spec)
    assert isinstance(error, InvalidSpec)
    assert error.param == "/saes/1/hook_name"
    assert text in f"{error.message} {error.hint}"


def test_what_is_known_of_a_models_family_is_said_at_submit(folder: Path, spec: dict[str, Any]) -> None:
    (folder / "model" / "config.json").write_text(json.dumps({"model_type": "gpt_oss", "n_layer": 4}))
    spec["stream"] |= {"model": {"name": str(folder / "model"), "weight_processing": "compatibility"}}
    with pytest.raises(InvalidSpec, match="folded exactly") as caught:
        preflight.check(JobSpec.model_validate(spec), Roots((folder, DEMO)))
    assert caught.value.param == "/stream/model/weight_processing"
    spec["saes"][0]["hook_name"] = "hook_pos_embed"
    assert refused(folder, spec).hint == "Use hook_embed."


@pytest.mark.parametrize("field", ["split", "held_out_split"])
def test_a_split_that_is_not_there_is_refused_by_its_own_field(spec: dict[str, Any], field: str) -> None:
    spec["stream"]["dataset"][field] = "nope"
    with pytest.raises(DataNotFound, match="it has train, test") as caught:
        preflight.check(JobSpec.model_validate(spec), Roots((DEMO,)))
    assert caught.value.param == f"/stream/dataset/{field}"


def test_the_text_that_is_trained_on_is_not_the_held_out_text(spec: dict[str, Any]) -> None:
    spec["stream"]["dataset"]["held_out_split"] = "train"
    # A job of an earlier release can still be read.
    job = JobSpec.model_validate(spec)
    with pytest.raises(InvalidSpec, match="which is trained on") as caught:
        preflight.check(job, Roots((DEMO,)))
    assert caught.value.param == "/stream/dataset/held_out_split"


def test_one_file_is_not_both_trained_on_and_held_out(folder: Path, spec: dict[str, Any]) -> None:
    file = folder / "text.jsonl"
    file.write_text('{"text": "all that there is"}\n')
    spec["stream"]["dataset"] = {"path": str(file), "split": "train", "held_out_split": "test"}
    with pytest.raises(DataNotFound, match="is one file") as caught:
        preflight.check(JobSpec.model_validate(spec), Roots((folder, DEMO)))
    assert caught.value.param == "/stream/dataset/held_out_split"


@pytest.mark.parametrize("way", ["link", "readme", "dots"])
def test_a_folder_of_text_cannot_lead_out_of_the_roots(folder: Path, spec: dict[str, Any], way: str) -> None:
    secret = folder.parent / "outside" / "text" / "train.jsonl"
    data = folder / "data"
    data.mkdir()
    if way == "link":
        (data / "train.jsonl").symlink_to(secret)
    else:
        target = str(secret) if way == "readme" else "../../outside/text/train.jsonl"
        (data / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {target}\n---\n")
    error = refused(folder, spec, dataset=str(data))
    assert isinstance(error, InvalidSpec)
    assert str(secret.parent) not in str(error)


def test_checking_a_job_does_not_import_torch(spec: dict[str, Any]) -> None:
    code = (
        "import json, sys; from pathlib import Path; from sae_service import preflight; "
        "from sae_service.readable import Roots; from sae_service.spec import JobSpec; job, root = json.loads(sys.argv[1]); "
        "preflight.check(JobSpec.model_validate(job), Roots((Path(root),))); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, json.dumps([spec, str(DEMO)])], check=True)


def test_conversations_for_a_model_without_a_chat_template_are_refused_at_submit(folder: Path, spec: dict[str, Any]) -> None:
    (folder / "text" / "train.jsonl").write_text('{"text": [{"role": "user", "content": "a"}]}\n')
    stream = spec["stream"] | {"model": {"name": str(folder / "model")}, "dataset": {"path": str(folder / "text"), "chat": True}}
    job = JobSpec.model_validate(spec | {"stream": stream})
    with pytest.raises(InvalidSpec, match="no chat template") as caught:
        preflight.check(job, Roots((folder,)))
    assert caught.value.param == "/stream/dataset/chat"
    (folder / "model" / "chat_template.jinja").write_text("{{ messages }}")
    preflight.check(job, Roots((folder,)))


def test_an_empty_file_is_said_to_be_empty(folder: Path, spec: dict[str, Any]) -> None:
    (folder / "text" / "train.jsonl").write_text("\n")
    error = refused(folder, spec)
    assert (error.param, error.message) == ("/stream/dataset/path", "train.jsonl is empty")
