"""A new architecture is one file: dropped into a copy of the package, it is found, trained, exported and documented."""

import shutil
import subprocess
import sys
from pathlib import Path

import sae_service

ARCHITECTURE = '''
"""ReLU with weights of the encoder tied to the decoder's."""

from typing import Any, Literal

import jax.numpy as jnp

from sae_service.numerics import random_rows, squared_error, unit_rows
from sae_service.pytree import PyTree
from sae_service.sae.architecture import Architecture, outcome
from sae_service.sae.inference import InferenceSAE
from sae_service.schema import ArchitectureConfig, OptimizerConfig


class MirroredConfig(ArchitectureConfig):
    kind: Literal["mirrored"] = "mirrored"
    l1_coefficient: float = 0.1


class Mirrored(PyTree):
    W_dec: Any
    b_enc: Any


def init(config, sites, key):
    return Mirrored(random_rows(key, config.d_sae, sites.d_read), jnp.zeros(config.d_sae))


def loss(config, parameters, rows, context, ops):
    latents = ops.encode(rows.x, parameters.W_dec.T, parameters.b_enc)
    y_hat = ops.decode(latents, parameters.W_dec)
    sparsity = context.sparsity_scale * config.l1_coefficient * jnp.mean(jnp.sum(latents.acts, axis=1))
    return outcome({"mse": squared_error(rows.y, y_hat), "sparsity": sparsity}, rows, y_hat, latents), parameters


def export(config, parameters):
    nothing = jnp.zeros(parameters.W_dec.shape[1])
    return InferenceSAE(parameters.W_dec.T, parameters.b_enc, parameters.W_dec, nothing, jnp.zeros(config.d_sae))


ARCHITECTURE = Architecture(
    config=MirroredConfig, init=init, loss=loss, export=export, optimizer=OptimizerConfig(lr=1e-3),
    normalization="unit_mean_square", example=MirroredConfig(d_sae=64),
    constrain=lambda parameters: parameters.replace(W_dec=unit_rows(parameters.W_dec)),
)
'''

PROGRAM = '''
import json
from pathlib import Path

import sae_service
from sae_service import pipeline
from sae_service.storage import artifacts
from sae_service.architectures import ARCHITECTURES
from sae_service.spec import JobSpec
from sae_service.storage.objects import Storage
from tests.recorder import Recorder

here = Path.cwd()
assert Path(sae_service.__file__).is_relative_to(here), "the copy is what runs"
assert "mirrored" in ARCHITECTURES
assert "MirroredConfig" in json.dumps(JobSpec.model_json_schema())
job = JobSpec.model_validate({
    "stream": {"synthetic": {"n_features": 32, "d_in": 16}, "tokens": 200 * 256, "batch": 256},
    "saes": [{"hook_name": "hook_synthetic", "architecture": {"kind": "mirrored", "d_sae": 32, "l1_coefficient": 0.05}}],
    "log_every": 20, "checkpoints": {"every_tokens": 20 * 256},
})
recorder, storage = Recorder(), Storage((here / "storage").as_uri())
final = pipeline.run(job, storage, "job", recorder)
fvu = [row["fvu"] for row in recorder.rows]
assert fvu[-1] < fvu[0] / 2, fvu
folder = "saes/mirrored_32/"
files = {path.removeprefix(folder): content for path, content in storage.read_published(final.key).items() if folder in path}
assert artifacts.from_files(files).W_enc.shape == (16, 32)
resumed = pipeline.run(job, storage, "again", Recorder(), resume_from=[recorder.checkpoints[2].key])
states = [storage.read_published(found.key)["state/arrays.safetensors"] for found in (final, resumed)]
assert states[0] == states[1]
print("trained")
'''


def test_a_new_architecture_touches_one_file(tmp_path: Path) -> None:
    package = Path(sae_service.__file__).parent
    shutil.copytree(package, tmp_path / "sae_service", ignore=shutil.ignore_patterns("demo", "__pycache__"))
    (tmp_path / "tests").symlink_to(Path(__file__).parents[1])
    (tmp_path / "sae_service" / "architectures" / "mirrored.py").write_text(ARCHITECTURE)
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout == "trained\n", done.stderr
