"""A model that computes NaN or infinity at some token: the job stops, and its last good checkpoint stays usable."""

import json
import lzma
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, load_file, save_file

import sae_service
from sae_service import pipeline
from sae_service.errors import NonFiniteLoss
from sae_service.spec import JobSpec
from sae_service.storage import artifacts
from sae_service.storage.objects import Storage
from tests.published import published
from tests.recorder import Recorder

DEMO = Path(sae_service.__file__).parent / "demo"
TILDE = 94
"""The token of "~", which the demo's text does not contain."""


def broken_model(folder: Path, value: float) -> Path:
    """The demo's model with `value` as the embedding of one token."""
    shutil.copytree(DEMO / "model", folder)
    tensors = load_file(folder / "model.safetensors")
    embedding = tensors["transformer.wte.weight"].copy()
    embedding[TILDE] = value
    save_file(tensors | {"transformer.wte.weight": embedding}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def text(folder: Path) -> Path:
    """Good text for more than a fill of the buffer, then text with the token; and good text to be held out."""
    with lzma.open(DEMO / "text" / "train.jsonl.xz", "rt") as lines:
        documents = [json.loads(next(lines))["text"][:2000] for _ in range(15)]
    good, bad = documents[:5], ["~ " + document for document in documents[5:]]
    folder.mkdir()
    for split, found in (("train", good + bad), ("test", good)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": document}) + "\n" for document in found))
    return folder


def job(folder: Path, value: float) -> JobSpec:
    """24 steps in three fills, a checkpoint every 4 steps."""
    return JobSpec.model_validate({
        "stream": {
            "model": {"name": str(broken_model(folder / "model", value))},
            "dataset": {"path": str(text(folder / "text")), "held_out_split": "test"},
            "tokens": 24 * 256, "batch": 256, "buffer_rows": 8 * 256, "prompts": 4,
        },
        "saes": [
            {"hook_name": "blocks.0.hook_resid_pre", "architecture": {"d_sae": 256, **architecture}}
            for architecture in ({"kind": "topk", "k": 8}, {"kind": "jumprelu"})
        ],
        "checkpoints": {"every_tokens": 4 * 256}, "evaluation": {"tokens": 256}, "log_every": 5,
    })  # fmt: skip


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_job_stops_and_keeps_its_last_good_checkpoint(tmp_path: Path, value: float) -> None:
    spec, recorder, storage = job(tmp_path, value), Recorder(), Storage((tmp_path / "storage").as_uri())
    with pytest.raises(NonFiniteLoss) as caught:
        pipeline.run(spec, storage, "job", recorder)
    assert caught.value.code == "nan_loss"
    assert len(list(tmp_path.rglob("manifest.json"))) == len(recorder.checkpoints) >= 2
    last = recorder.checkpoints[-1]
    assert last.step < 24
    files = published(storage, last.key)
    for content in (files[path] for path in files if path.endswith(".safetensors")):
        assert all(np.isfinite(array).all() for array in load(content).values())
    for sae in spec.saes:
        folder = f"saes/{sae.name}/"
        read = artifacts.from_files({path.removeprefix(folder): files[path] for path in files if path.startswith(folder)})
        assert np.isfinite(read.encode(np.ones((2, 128), np.float32))).all()
    # The state loads too: the job goes on from there, and meets the same rows again.
    resumed = Recorder()
    with pytest.raises(NonFiniteLoss):
        pipeline.run(spec, storage, "job", resumed, resume_from=(last.key,))
    assert not [message for level, message in resumed.events if level != "info" and "checkpoint" in message]
    assert min([row["step"] for row in resumed.rows], default=24) > last.step


def test_rows_that_are_broken_from_the_start_stop_the_job_before_it_saves_anything(tmp_path: Path) -> None:
    spec = job(tmp_path, np.nan)
    (tmp_path / "text" / "train.jsonl").write_text(json.dumps({"text": "~ and " * 5000}) + "\n")
    with pytest.raises(NonFiniteLoss):
        pipeline.run(spec, Storage((tmp_path / "storage").as_uri()), "job", Recorder())
    assert not list(tmp_path.rglob("manifest.json"))
