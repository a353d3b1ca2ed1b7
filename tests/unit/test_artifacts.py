"""The files of an SAE, for every architecture."""

import json
from typing import Any

import jax
import numpy as np
import pytest

from sae_service.architectures import ARCHITECTURES
from sae_service.errors import DamagedCheckpoint
from sae_service.sae.inference import InferenceSAE
from sae_service.spec import JobSpec
from sae_service.storage import artifacts

EXPORTED_AS = {"standard": "standard", "standard_tied": "standard", "p_annealing": "standard", "topk": "topk"}


def written(kind: str) -> tuple[InferenceSAE, dict[str, bytes]]:
    architecture = ARCHITECTURES[kind]
    parameters = architecture.init(architecture.example, 16, jax.random.key(0))
    rows = jax.random.normal(jax.random.key(1), (64, 16))
    sae = architecture.export(architecture.example, architecture.fit_to_rows(architecture.example, parameters, rows))
    if kind in ("batchtopk", "gated", "matryoshka"):
        # Untrained, their thresholds are 0.
        sae = sae.replace(threshold=sae.threshold + 0.5)
    spec: dict[str, Any] = {"hook_name": "blocks.0.hook_out", "architecture": architecture.example.model_dump()}
    stream = {"model": {"name": "gpt2"}, "dataset": {"path": "text"}, "tokens": 10_000}
    job = JobSpec.model_validate({"stream": stream, "saes": [spec]})
    return sae, artifacts.to_files(sae, job, job.saes[0], {})


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_an_sae_is_read_as_it_was_written(kind: str) -> None:
    sae, files = written(kind)
    config = json.loads(files[artifacts.CONFIG])
    assert config["architecture"] == EXPORTED_AS.get(kind, "jumprelu")
    assert config["metadata"]["training_architecture"] == kind
    read = artifacts.from_files(files)
    x = jax.random.normal(jax.random.key(2), (32, 16))
    np.testing.assert_array_equal(read.encode(x), sae.encode(x))
    np.testing.assert_array_equal(read.decode(read.encode(x)), sae.decode(sae.encode(x)))


@pytest.mark.parametrize("length", [0, 7, 8, 100, 2000])
def test_a_file_that_is_cut_off_is_refused(length: int) -> None:
    _, files = written("gated")
    with pytest.raises(DamagedCheckpoint):
        artifacts.from_files(files | {artifacts.WEIGHTS: files[artifacts.WEIGHTS][:length]})


def test_a_pickle_in_place_of_weights_is_refused_and_not_run() -> None:
    _, files = written("gated")
    with pytest.raises(DamagedCheckpoint):
        artifacts.from_files(files | {artifacts.WEIGHTS: b"\x80\x04cos\nsystem\n(S'echo hacked'\ntR."})
