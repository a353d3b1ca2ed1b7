"""Jobs that go on from weights that were trained before: what is refused, and that they start where those ended."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from sae_service.cli.job_file import JobFile
from sae_service.errors import InvalidSpec
from sae_service.formats import FORMATS
from sae_service.formats.folder import load
from sae_service.settings import Settings
from sae_service.spec import SAESpec
from sae_service.training import start
from tests.saes import DESCRIPTION, random_sae
from tests.small_jobs import small_job, train

ROOT = Path(__file__).parents[2]


def written(folder: Path, format: str, choice: str, d_in: int = 128, d_sae: int = 256) -> Path:
    """A folder with an SAE in a format."""
    folder.mkdir(parents=True)
    for name, content in FORMATS[format].to_files(random_sae(choice, d_in, d_sae), DESCRIPTION).items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of a job's SAEs, by name."""
    folder = tmp_path_factory.mktemp("first")
    train(folder, small_job())
    (final,) = folder.glob("jobs/test/step-000000024-*")
    return {path.name: path for path in (final / "saes").iterdir()}


def continued(first: dict[str, Path], **changes: Any) -> dict[str, Any]:
    """The same job from where the first has ended, with one step that hardly moves."""
    job = small_job(tokens=256)
    for sae in job["saes"]:
        name = f"{sae['architecture']['kind']}_256"
        sae["initial"] = {"path": str(first[name])}
        sae["optimizer"] = {"lr": 1e-30}
    return job | changes


def test_a_job_starts_where_another_has_ended(first: dict[str, Path], tmp_path: Path) -> None:
    _, files = train(tmp_path, continued(first))
    for name, folder in first.items():
        before, after = json.loads((folder / "metrics.json").read_text()), json.loads(files[f"saes/{name}/metrics.json"])
        for figure in ("l0", "fvu", "ce_loss_sae"):
            assert after[figure] == pytest.approx(before[figure], rel=1e-4), (name, figure)


def test_provenance_pins_the_weights_by_their_hash(first: dict[str, Path], tmp_path: Path) -> None:
    _, files = train(tmp_path, continued(first))
    found = json.loads(files["saes/gated_256/provenance.json"])
    assert set(found["initial"]) == set(first)
    folder = first["gated_256"]
    by_hand = subprocess.run(
        "sha256sum cfg.json sae_weights.safetensors | sha256sum", shell=True, cwd=folder, capture_output=True, text=True
    )
    assert found["initial"]["gated_256"] == by_hand.stdout.split()[0]
    pinned = continued(first)
    pinned["saes"][1]["initial"]["sha256"] = found["initial"]["gated_256"]
    train(tmp_path / "pinned", pinned)


def test_a_job_that_goes_on_from_a_checkpoint_needs_the_weights_no_more(tmp_path: Path) -> None:
    folder = written(tmp_path / "sae", "saelens", "jumprelu")
    job = small_job()
    job["saes"] = job["saes"][1:2]
    job["saes"][0]["initial"] = {"path": str(folder)}
    _, undisturbed = train(tmp_path / "whole", job)
    recorder, _ = train(tmp_path / "stopped", job, stop_after=9)
    (folder / "sae_weights.safetensors").unlink()
    _, files = train(tmp_path / "stopped", job, resume_from=(recorder.checkpoints[-1].key,))
    path = "saes/gated_256/"
    for name in ("sae_weights.safetensors", "provenance.json"):
        assert files[path + name] == undisturbed[path + name]


@pytest.mark.parametrize(
    ("format", "choice", "architecture"),
    [
        ("dictionary_learning", "relu", {"kind": "standard"}),
        ("gemma_scope", "jumprelu", {"kind": "gated"}),
        ("sparsify", "topk", {"kind": "topk"}),
    ],
)
def test_every_format_can_be_started_from(tmp_path: Path, format: str, choice: str, architecture: dict[str, Any]) -> None:
    folder = written(tmp_path / "sae", format, choice)
    sae = load(folder, format)
    job = small_job(tokens=256)
    changes = {"d_sae": 256, "k": sae.k} if sae.k else {"d_sae": 256}
    start = {"path": str(folder), "format": format}
    job["saes"] = [
        {
            "name": "x", "hook_name": "blocks.1.hook_resid_post", "architecture": architecture | changes, "initial": start,
            "optimizer": {"lr": 1e-30},
        }
    ]  # fmt: skip
    _, files = train(tmp_path / "job", job)
    trained = FORMATS["saelens"].from_files({path.removeprefix("saes/x/"): files[path] for path in files})
    x = np.random.default_rng(0).normal(size=(20, 128)).astype(np.float32)
    np.testing.assert_allclose(trained.decode(trained.encode(x)), sae.decode(sae.encode(x)), atol=1e-4)


# What is refused when a job is submitted.


@pytest.fixture
def api(tmp_path: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(data_dir=tmp_path / "data")), "http://localhost", raise_server_exceptions=False) as found:
        yield found


def no_change(folder: Path, sae: dict[str, Any]) -> None:
    pass


def another(path: str, value: Any) -> Callable[[Path, dict[str, Any]], None]:
    def change(folder: Path, sae: dict[str, Any]) -> None:
        part, _, name = path.rpartition(".")
        (sae[part] if part else sae)[name] = value

    return change


def cut(folder: Path, sae: dict[str, Any]) -> None:
    (folder / "sae_weights.safetensors").write_bytes(b"\x05\0\0\0\0\0\0\0{}")


def shortened(folder: Path, sae: dict[str, Any]) -> None:
    file = folder / "sae_weights.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def linked_outside(folder: Path, sae: dict[str, Any]) -> None:
    (folder / "cfg.json").unlink()
    (folder / "cfg.json").symlink_to("/etc/passwd")


@pytest.mark.parametrize(
    ("change", "pointer", "text"),
    [
        (another("initial.path", "/etc"), "/saes/0/initial/path", "SAE_SERVICE_ALLOWED_ROOTS"),
        (linked_outside, "/saes/0/initial/path", "SAE_SERVICE_ALLOWED_ROOTS"),
        (another("initial.path", "gemma-scope"), "/saes/0/initial/path", "path of a folder"),
        (another("initial.format", "pickle"), "/saes/0/initial/format", "'sparsify'"),
        (another("initial.sha256", "0" * 64), "/saes/0/initial/sha256", "have changed"),
        (another("initial.url", "x"), "/saes/0/initial/url", "no field"),
        (another("initial.format", "gemma_scope"), "/saes/0/initial/path", "params.npz"),
        (another("architecture.d_sae", 512), "/saes/0/architecture/d_sae", "must be 256"),
        (another("architecture", {"kind": "standard", "d_sae": 256}), "/saes/0/architecture/kind", "jumprelu or gated"),
        (another("hook_name", "blocks.1.mlp.hook_post"), "", ""),
        (cut, "/saes/0/initial/path", "sae_weights.safetensors"),
        (shortened, "/saes/0/initial/path", "sae_weights.safetensors"),
    ],
)
def test_a_start_that_cannot_be_is_refused_at_submit(
    api: TestClient, spec: dict[str, Any], tmp_path: Path, change: Callable[..., None], pointer: str, text: str
) -> None:
    spec = copy.deepcopy(spec)
    folder = written(tmp_path / "data" / "sae", "saelens", "jumprelu")
    sae = spec["saes"][0]
    sae["architecture"], sae["initial"] = {"kind": "gated", "d_sae": 256}, {"path": str(folder)}
    change(folder, sae)
    answer = api.post("/v1/jobs", json=spec)
    if not pointer:
        assert answer.status_code == 201, "how wide this hook point is, only the model knows"
        return
    problem = answer.json()
    assert (answer.status_code, problem["errors"][0]["pointer"]) == (422, pointer), problem
    assert text in problem["errors"][0]["detail"]


def test_a_hook_point_of_another_width_is_refused(api: TestClient, spec: dict[str, Any], tmp_path: Path) -> None:
    folder = written(tmp_path / "data" / "sae", "saelens", "relu", d_in=64)
    spec["saes"][1]["initial"] = {"path": str(folder)}
    assert "have 128" in api.post("/v1/jobs", json=spec).json()["errors"][0]["detail"]
    synthetic = {"synthetic": {"n_features": 40, "d_in": 32}, "tokens": 1000, "batch": 100}
    sae = spec["saes"][1] | {"hook_name": "hook_synthetic"}
    assert "have 32" in api.post("/v1/jobs", json={"stream": synthetic, "saes": [sae]}).json()["errors"][0]["detail"]
    job = small_job(tokens=256)
    job["saes"] = [spec["saes"][1] | {"hook_name": "blocks.1.mlp.hook_post"}]
    with pytest.raises(InvalidSpec, match="have 512") as caught:
        train(tmp_path / "job", job)
    assert caught.value.param == "/saes/0/initial/path"


@pytest.mark.parametrize("format", list(FORMATS))
def test_sizes_are_read_from_the_headers_of_files_too_large_to_be_read(
    tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written(tmp_path / "sae", format, "topk" if format == "sparsify" else "relu", d_in=7, d_sae=12)
    assert FORMATS[format].sizes(folder) == (7, 12)
    monkeypatch.setattr(start, "LARGEST_LOOK", 0)
    spec = SAESpec.model_validate({
        "hook_name": "hook_synthetic", "architecture": {"kind": "gated", "d_sae": 13},
        "initial": {"path": str(folder), "format": format},
    })  # fmt: skip
    with pytest.raises(InvalidSpec, match="must be 12"):
        start.check(spec, 0, {})


@pytest.mark.parametrize("format", list(FORMATS))
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\xff" * 100, b'{"trainer": 1}', b"[" * 100_000, b"\x02\0\0\0\0\0\0\0{}"])
def test_a_header_that_says_nothing_is_refused(tmp_path: Path, format: str, content: bytes) -> None:
    for name in FORMATS[format].files:
        (tmp_path / name).write_bytes(content)
    spec = SAESpec.model_validate({
        "hook_name": "hook_synthetic", "architecture": {"kind": "gated", "d_sae": 13},
        "initial": {"path": str(tmp_path), "format": format},
    })  # fmt: skip
    with pytest.raises(InvalidSpec) as caught:
        start.check(spec, 2, {})
    assert caught.value.param == "/saes/2/initial/path"


def test_checking_a_start_touches_no_device(tmp_path: Path) -> None:
    code = """
import sys
from sae_service.architectures import ARCHITECTURES
from sae_service.errors import InvalidSpec
from sae_service.spec import SAESpec
from sae_service.training import start
for kind in ARCHITECTURES:
    architecture = ARCHITECTURES[kind].example.model_dump() | {"d_sae": 24}
    spec = {"hook_name": "hook_a", "architecture": architecture, "initial": {"path": sys.argv[1]}}
    try:
        start.check(SAESpec.model_validate(spec), 0, {"hook_a": 6})
    except InvalidSpec:
        pass
assert "torch" not in sys.modules
"""
    folder = written(tmp_path / "sae", "saelens", "relu", d_in=6, d_sae=24)
    command = [sys.executable, "-c", code, str(folder)]
    ended = subprocess.run(command, cwd=ROOT, env={"JAX_PLATFORMS": "none"}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_paths_in_a_file_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("stream: {}\nsaes: [{initial: {path: ./sae}}, {initial: {path: /a}}, 3, {initial: 4}]\n")
    found = JobFile(str(tmp_path / "job.yaml")).spec()["saes"]
    assert [found[index]["initial"]["path"] for index in (0, 1)] == [str(tmp_path / "sae"), "/a"]
