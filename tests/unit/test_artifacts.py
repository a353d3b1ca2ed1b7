"""The files of an SAE, for every architecture."""

import json
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load, save

from sae_service.architectures import ARCHITECTURES
from sae_service.errors import DamagedCheckpoint, InvalidSpec
from sae_service.sae.architecture import Rows
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.sites import at
from sae_service.spec import JobSpec
from sae_service.storage import artifacts
from tests.saes import in_memory, random_transcoder

EXPORTED_AS = {"standard": "standard", "standard_tied": "standard", "p_annealing": "standard", "topk": "topk"}


def written(kind: str) -> tuple[InferenceSAE, dict[str, bytes]]:
    architecture = ARCHITECTURES[kind]
    parameters = architecture.init(architecture.example, at("blocks.0.hook_out", 16), jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (64, 16))
    rows = Rows(x, x)
    sae = architecture.export(architecture.example, architecture.fit_to_rows(architecture.example, parameters, rows))
    if kind in ("batchtopk", "gated", "matryoshka"):
        # Untrained, their thresholds are 0.
        sae = sae.replace(threshold=sae.threshold + 0.5)
    job = job_of({"hook_name": "blocks.0.hook_out", "architecture": architecture.example.model_dump()})
    return sae, in_memory(artifacts.to_files(sae, job, job.saes[0], {}))


def job_of(spec: dict[str, Any]) -> JobSpec:
    stream = {"model": {"name": "gpt2"}, "dataset": {"path": "text"}, "tokens": 10_000}
    return JobSpec.model_validate({"stream": stream, "saes": [spec]})


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_an_sae_is_read_as_it_was_written(kind: str) -> None:
    sae, files = written(kind)
    config = json.loads(files[artifacts.CONFIG])
    assert config["architecture"] == EXPORTED_AS.get(kind, "jumprelu")
    assert config["metadata"]["training_architecture"] == kind
    read = artifacts.from_files(files)
    assert read.sites == sae.sites
    x = jax.random.normal(jax.random.key(2), (32, 16))
    np.testing.assert_array_equal(read.encode(x), sae.encode(x))
    np.testing.assert_array_equal(read.decode(read.encode(x)), sae.decode(sae.encode(x)))


BOTH = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]


@pytest.mark.parametrize(
    ("hook_points", "architecture", "refused"),
    [
        ({"hook_name": BOTH}, {"kind": "topk", "k": 3}, "saelens"),
        ({"hook_name": BOTH}, {"kind": "standard"}, "gemma_scope"),
        ({"hook_name": BOTH, "hook_name_out": "blocks.0.hook_mlp_out"}, {"kind": "standard", "skip": True}, "sparsify"),
        ({"hook_name": BOTH[0], "hook_name_out": "blocks.0.hook_mlp_out"}, {"kind": "topk", "k": 3}, "saelens"),
        ({"hook_name": BOTH[0], "hook_name_out": "blocks.0.hook_mlp_out"}, {"kind": "jumprelu"}, "sparsify"),
    ],
)
def test_what_another_library_has_no_class_for_is_kept_all_the_same(
    hook_points: dict[str, Any], architecture: dict[str, Any], refused: str
) -> None:
    job = job_of({**hook_points, "architecture": {"d_sae": 24, **architecture}})
    (spec,) = job.saes
    sites = spec.sites({BOTH[0]: 6, BOTH[1]: 5, "blocks.0.hook_mlp_out": 7})
    choice = {"standard": "relu"}.get(architecture["kind"], architecture["kind"])
    sae = random_transcoder(choice, sites, skip=architecture.get("skip", False))
    files = in_memory(artifacts.to_files(sae, job, spec, {}))
    read = artifacts.from_files(files)
    assert (read.sites, read.k) == (sites, sae.k)
    x = np.random.default_rng(0).normal(size=(32, sites.d_read)).astype(np.float32)
    np.testing.assert_array_equal(read.decode(read.encode(x), x), sae.decode(sae.encode(x), x))
    with pytest.raises(InvalidSpec) as caught:
        artifacts.converted(files, job, spec, refused)
    assert caught.value.hint


@pytest.mark.parametrize("length", [0, 7, 8, 100, 2000])
def test_a_file_that_is_cut_off_is_refused(length: int) -> None:
    _, files = written("gated")
    with pytest.raises(DamagedCheckpoint):
        artifacts.from_files(files | {artifacts.WEIGHTS: files[artifacts.WEIGHTS][:length]})


def test_a_pickle_in_place_of_weights_is_refused_and_not_run() -> None:
    _, files = written("gated")
    with pytest.raises(DamagedCheckpoint):
        artifacts.from_files(files | {artifacts.WEIGHTS: b"\x80\x04cos\nsystem\n(S'echo hacked'\ntR."})


def test_the_weights_are_the_bytes_that_the_library_of_the_format_writes() -> None:
    _, files = written("jumprelu")
    assert files[artifacts.WEIGHTS] == save(load(files[artifacts.WEIGHTS]))
