"""A new architecture is one file: dropped into a copy of the package, it is found, trained, exported and documented.

So is a new file format: it is found, written, read, started from, and offered by the REST interface.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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

import pytest

import sae_service
from sae_service import pipeline
from sae_service.storage import artifacts
from sae_service.architectures import ARCHITECTURES
from sae_service.spec import JobSpec
from sae_service.storage.objects import Storage
from tests.published import published
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
files = {path.removeprefix(folder): content for path, content in published(storage, final.key).items() if folder in path}
assert artifacts.from_files(files).W_enc.shape == (16, 32)
resumed = pipeline.run(job, storage, "again", Recorder(), resume_from=[recorder.checkpoints[2].key])
states = [published(storage, found.key)["state/arrays.safetensors"] for found in (final, resumed)]
assert states[0] == states[1]
print("trained")
'''


FORMAT = '''
"""The arrays of an SAE as lists of numbers in JSON."""

import json

import numpy as np

from sae_service.formats.file_format import assembled, checked, refuse_all_but_autoencoders
from sae_service.sae.weights import COMPLETE, arrays, of_autoencoder

FILES = ("numbers.json",)


def to_files(sae, description):
    refuse_all_but_autoencoders(sae, description, "numbers")
    return {FILES[0]: json.dumps({name: array.tolist() for name, array in arrays(sae).items()}).encode()}


def from_files(files):
    found = {name: np.asarray(array, np.float32) for name, array in json.loads(files[FILES[0]]).items()}
    return assembled(checked(found, {**of_autoencoder(COMPLETE), "threshold": ("d_sae",)}))


def sizes(folder):
    return np.shape(json.loads((folder / FILES[0]).read_text())["W_enc"])
'''

PROGRAM_OF_FORMAT = '''
from pathlib import Path

import numpy as np

import pytest

import sae_service
from api.app import create_app
from sae_service.evaluation.of_folders import load
from sae_service.formats import FORMATS
from sae_service.settings import Settings
from sae_service.spec import SAESpec
from sae_service.training import start
from tests.saes import DESCRIPTION, random_sae

here = Path.cwd()
assert Path(sae_service.__file__).is_relative_to(here), "the copy is what runs"
sae = random_sae("jumprelu")
for name, content in FORMATS["numbers"].to_files(sae, DESCRIPTION).items():
    (here / name).write_bytes(content)
assert np.array_equal(load(here, "numbers").W_enc, sae.W_enc)
spec = SAESpec.model_validate({
    "hook_name": "hook_synthetic", "architecture": {"kind": "jumprelu", "d_sae": 24},
    "initial": {"path": str(here), "format": "numbers"},
})
assert np.array_equal(start.load(spec, 0, {"hook_synthetic": 6}).sae.threshold, sae.threshold)
assert "numbers" in str(create_app(Settings(data_dir=here / "data")).openapi()["components"])
print("read")
'''


def ran_in_a_copy(folder: Path, added: str, content: str, program: str) -> str:
    """What a program prints that runs on a copy of the package with one more file."""
    package = Path(sae_service.__file__).parent
    shutil.copytree(package, folder / "sae_service", ignore=shutil.ignore_patterns("demo", "__pycache__"))
    for beside in ("tests", "api"):
        (folder / beside).symlink_to(package.parent / beside)
    (folder / "sae_service" / added).write_text(content)
    (folder / "program.py").write_text(program)
    done = subprocess.run([sys.executable, "program.py"], cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_new_architecture_touches_one_file(tmp_path: Path) -> None:
    assert ran_in_a_copy(tmp_path, "architectures/mirrored.py", ARCHITECTURE, PROGRAM) == "trained\n"


@pytest.mark.slow
def test_a_new_file_format_touches_one_file(tmp_path: Path) -> None:
    assert ran_in_a_copy(tmp_path, "formats/numbers.py", FORMAT, PROGRAM_OF_FORMAT) == "read\n"
