"""Whole jobs on the kinds of text that people have, and on text that does not suffice."""

import json
import lzma
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae_service.activations.documents import is_held_out
from sae_service.activations.model import LanguageModel
from sae_service.activations.tokens import Cursor, PackedTokens
from sae_service.errors import DamagedText, DataNotFound, InvalidSpec
from sae_service.evaluation.on_text import held_out_batches
from sae_service.spec import DatasetSpec, ModelSpec, StreamSpec
from tests.conftest import DEMO
from tests.letters import TURNS
from tests.recorder import Recorder
from tests.small_jobs import small_job, train, weights


@pytest.fixture(scope="module")
def texts() -> list[str]:
    with lzma.open(DEMO / "text" / "train.jsonl.xz", "rt") as lines:
        return [json.loads(line)["text"] for line, _ in zip(lines, range(600), strict=False)]


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's model with a chat template."""
    folder = tmp_path_factory.mktemp("model") / "model"
    shutil.copytree(DEMO / "model", folder)
    (folder / "chat_template.jinja").write_text(TURNS)
    return folder


@pytest.fixture(scope="module")
def model(chat_model: Path) -> LanguageModel:
    return LanguageModel(ModelSpec(name=str(chat_model)), "cpu")


def lines(path: Path, column: str, values: list[Any]) -> Path:
    path.write_text("".join(json.dumps({column: value}) + "\n" for value in values))
    return path


def job_on(dataset: dict[str, Any], **stream: Any) -> dict[str, Any]:
    """A small job with one SAE."""
    job = small_job(dataset=dataset, context_size=64, **stream)
    return job | {"saes": job["saes"][:1]}


def conversations(texts: list[str]) -> list[list[dict[str, str]]]:
    return [
        [{"role": "user", "content": one[:100]}, {"role": "assistant", "content": other[:200]}]
        for one, other in zip(texts[::2], texts[1::2], strict=True)
    ]


@pytest.mark.parametrize("n_documents", [1, 20])
def test_too_little_held_out_text_is_refused_before_the_first_step(tmp_path: Path, texts: list[str], n_documents: int) -> None:
    path = lines(tmp_path / "few.jsonl", "text", [text for text in texts if not is_held_out(text, 0.02)][:n_documents])
    recorder = Recorder()
    with pytest.raises(InvalidSpec, match=rf"of the {n_documents} documents .* holds out 0; .*Raise held_out_share") as refused:
        train(tmp_path / "out", job_on({"path": str(path)}), recorder=recorder)
    assert refused.value.param == "/stream/dataset/held_out_share"
    assert recorder.rows == recorder.checkpoints == []


def test_a_held_out_split_that_is_too_short_is_refused_by_its_name(tmp_path: Path, texts: list[str]) -> None:
    lines(tmp_path / "train.jsonl", "text", texts)
    lines(tmp_path / "test.jsonl", "text", ["short", None])
    with pytest.raises(InvalidSpec, match=r"split 'test' of .* is shorter than one row of 64 tokens") as refused:
        train(tmp_path / "out", job_on({"path": str(tmp_path), "held_out_split": "test"}))
    assert refused.value.param == "/stream/dataset/held_out_split"


def test_less_held_out_text_than_was_asked_for_is_said(tmp_path: Path, texts: list[str]) -> None:
    path = lines(tmp_path / "text.jsonl", "text", [None, *texts])
    recorder, files = train(tmp_path / "out", job_on({"path": str(path)}) | {"evaluation": {"tokens": 1 << 20}})
    warnings = [message for level, message in recorder.events if level == "warning"]
    assert any("evaluation.tokens: 1048576 were asked for, and the held-out text has only" in message for message in warnings)
    assert any("rows have nothing (NULL) in 'text'" in message for message in warnings)
    assert files


def test_a_default_that_is_more_than_the_held_out_text_is_no_warning(tmp_path: Path, texts: list[str]) -> None:
    path = lines(tmp_path / "text.jsonl", "text", texts)
    recorder, _ = train(tmp_path / "out", job_on({"path": str(path)}) | {"evaluation": {}})
    said = [(level, message) for level, message in recorder.events if message.startswith("Held-out text")]
    assert [level for level, _ in said] == ["info"]
    assert "all used for the figures" in said[0][1]


def test_text_and_its_ids_train_the_same_sae(tmp_path: Path, texts: list[str], model: LanguageModel) -> None:
    split = {"held_out_split": "test"}
    found = []
    for column, values in (("text", texts), ("ids", model.encode(texts))):
        folder = tmp_path / column
        folder.mkdir()
        lines(folder / "train.jsonl", column, values[:500])
        lines(folder / "test.jsonl", column, values[500:])
        found.append(train(folder / "out", job_on({"path": str(folder), "column": column, **split}))[1])
    of_text, of_ids = found
    assert weights(of_text) == weights(of_ids)
    measured = [json.loads(files["saes/standard_256/metrics.json"]) for files in found]
    assert measured[0]["ce_loss_sae"] == measured[1]["ce_loss_sae"]


def test_a_job_on_kept_rows_goes_on_to_the_same_bytes(tmp_path: Path, texts: list[str], model: LanguageModel) -> None:
    ids = [row for row in model.encode(texts) if len(row) >= 64]
    path = lines(tmp_path / "rows.jsonl", "tokens", [row[:80] for row in ids])
    job = job_on({"path": str(path), "column": "tokens", "rows": "kept", "held_out_share": 0.2})
    _, undisturbed = train(tmp_path / "whole", job)
    recorder, _ = train(tmp_path / "stopped", job, stop_after=9)
    _, resumed = train(tmp_path / "stopped", job, resume_from=(recorder.checkpoints[-1].key,))
    assert weights(resumed) == weights(undisturbed)


def test_an_id_that_the_model_does_not_have_ends_the_job(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", "tokens", [[5] * 64, [1 << 20] * 64])
    with pytest.raises(InvalidSpec, match=rf"row 2 of {path} holds token 1048576"):
        train(tmp_path / "out", job_on({"path": str(path), "column": "tokens", "held_out_share": 0.4}))


def test_turns_that_are_left_out_are_neither_trained_on_nor_measured(
    tmp_path: Path, texts: list[str], chat_model: Path, model: LanguageModel
) -> None:
    path = lines(tmp_path / "talk.jsonl", "messages", conversations(texts))
    dataset = {"path": str(path), "column": "messages", "chat": True, "train_on": "assistant", "held_out_share": 0.2}
    stream = StreamSpec(
        model=ModelSpec(name=str(chat_model)), dataset=DatasetSpec(**dataset), context_size=64, tokens=1024, batch=256, prompts=8
    )
    said = "".join(model.tokenizer.decode(batch.tokens[batch.keep]) for batch in held_out_batches(stream, 2048, model))
    answers = "".join(talk[1]["content"] for talk in conversations(texts))
    assert len(said) > 1000
    assert all(part in answers for part in said.split("</>"))
    train_rows = PackedTokens(DatasetSpec(**dataset), "train", model, 64, 8, repeat=False).read(Cursor())
    assert 0.3 < np.mean([prompts.trained.mean() for prompts, _ in train_rows]) < 0.9


def test_a_job_on_conversations_goes_on_to_the_same_bytes(tmp_path: Path, texts: list[str], chat_model: Path) -> None:
    path = lines(tmp_path / "talk.jsonl", "messages", conversations(texts))
    dataset = {"path": str(path), "column": "messages", "chat": True, "train_on": "assistant", "held_out_share": 0.2}
    job = job_on(dataset, model={"name": str(chat_model)})
    _, undisturbed = train(tmp_path / "whole", job)
    recorder, _ = train(tmp_path / "stopped", job, stop_after=9)
    _, resumed = train(tmp_path / "stopped", job, resume_from=(recorder.checkpoints[-1].key,))
    assert weights(resumed) == weights(undisturbed)


def test_a_broken_line_ends_the_job_with_its_name(tmp_path: Path, texts: list[str]) -> None:
    lines(tmp_path / "test.jsonl", "text", texts[:100])
    path = lines(tmp_path / "train.jsonl", "text", texts[:200])
    path.write_text(path.read_text() + '{"text": "cut off\n' + '{"text": "more"}\n')
    with pytest.raises(DamagedText, match=rf"line 201 of {path} cannot be read: "):
        train(tmp_path / "out", job_on({"path": str(tmp_path), "held_out_split": "test"}, tokens=1 << 20))


@pytest.mark.parametrize("train_on", ["all", "assistant"])
def test_a_stream_that_delivers_nothing_ends_at_once(tmp_path: Path, texts: list[str], chat_model: Path, train_on: str) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    monologues = [[{"role": "user", "content": text}] for text in texts]
    lines(folder / "train.jsonl", "messages", [[]] * 500 if train_on == "all" else monologues)
    lines(folder / "test.jsonl", "messages", conversations(texts))
    dataset = {"path": str(folder), "column": "messages", "chat": True, "train_on": train_on, "held_out_split": "test"}
    said = "has no text" if train_on == "all" else "no token beside those left out"
    with pytest.raises(DataNotFound if train_on == "all" else InvalidSpec, match=said):
        train(tmp_path / "out", job_on(dataset, model={"name": str(chat_model)}))
