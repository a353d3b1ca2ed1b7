"""SAEs of a checkpoint in the file formats of other libraries, over REST, from Python and from the command line."""

import hashlib
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from api.apart import Apart
from sae_service import client, errors
from sae_service.cli import app as command_line
from sae_service.formats import FORMATS
from sae_service.jobs import tables
from sae_service.jobs.attempts import Attempt
from sae_service.jobs.database import Database
from sae_service.schema import FormatName
from sae_service.settings import Settings
from sae_service.spec import JobSpec
from sae_service.storage import artifacts
from sae_service.storage.objects import Content, Storage
from tests.saes import random_sae

ROOT = Path(__file__).parents[2]
SAES = {"a": random_sae("jumprelu"), "b": random_sae("topk")}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


@pytest.fixture
def job_id(api: TestClient, settings: Settings, spec: dict[str, Any]) -> str:
    """A job that has succeeded: `a` is a JumpReLU SAE, `b` a TopK SAE."""
    job = JobSpec.model_validate(spec)
    job_id = api.post("/v1/jobs", json=spec).json()["id"]
    attempt = Attempt(Database(settings.resolved_database_url()), job_id, 1)
    attempt.claim("worker-1")
    files: dict[str, Content] = {}
    for sae in job.saes:
        written = artifacts.to_files(SAES[sae.name], job, sae, {"seed": 3}) | {artifacts.METRICS: b'{"fvu": 0.1}'}
        files |= {f"saes/{sae.name}/{name}": content for name, content in written.items()}
    entries = Storage(settings.resolved_storage_url()).publish(f"jobs/{job_id}/one", files)
    attempt.commit(
        {"key": f"jobs/{job_id}/one", "step": 40, "tokens": 10_240, "is_final": True, "files": entries, "metrics": {}}, keep=1
    )
    return job_id


@pytest.fixture
def saes(job_id: str) -> str:
    """The address below which the job's SAEs lie."""
    return f"/v1/jobs/{job_id}/checkpoints/latest/saes"


def unzipped(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize(
    ("name", "format"),
    [("a", "saelens"), ("a", "dictionary_learning"), ("a", "gemma_scope"), ("b", "sparsify"), ("b", "dictionary_learning")],
)
def test_an_sae_is_downloaded_in_another_format_with_its_figures(api: TestClient, saes: str, name: str, format: str) -> None:
    answer = api.get(f"{saes}/{name}/download", params={"format": format})
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "application/zip"
    assert answer.headers["Content-Disposition"] == f'attachment; filename="{name}.{format}.zip"'
    files = unzipped(answer.content)
    assert set(files) == {*FORMATS[format].files, "metrics.json", "provenance.json"}
    read = FORMATS[format].from_files(files)
    assert read.k == SAES[name].k
    for part in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"):
        np.testing.assert_allclose(getattr(read, part), getattr(SAES[name], part), atol=1e-5)


def test_what_is_asked_for_by_a_name_that_moves_on_is_asked_for_again(api: TestClient, job_id: str) -> None:
    base = f"/v1/jobs/{job_id}/checkpoints"
    checkpoint = api.get(f"{base}/latest").json()["id"]
    kept = {name: api.get(f"{base}/{name}/files/saes/a/cfg.json").headers["Cache-Control"] for name in ("latest", checkpoint)}
    assert "no-cache" in kept["latest"]
    assert "immutable" in kept[checkpoint]


def test_a_conversion_to_the_stored_format_gives_the_stored_files(api: TestClient, saes: str) -> None:
    files = unzipped(api.get(f"{saes}/b/download?format=saelens").content)
    for name, content in files.items():
        assert content == api.get(f"{saes.removesuffix('/saes')}/files/saes/b/{name}").content


def test_a_conversion_is_repeatable_so_that_a_broken_download_goes_on(api: TestClient, saes: str) -> None:
    url = f"{saes}/a/download?format=gemma_scope"
    whole = api.get(url)
    etag = whole.headers["ETag"]
    assert etag == f'"{hashlib.sha256(whole.content).hexdigest()}"'
    rest = api.get(url, headers={"Range": "bytes=1000-", "If-Range": etag})
    assert (rest.status_code, rest.content) == (206, whole.content[1000:])
    assert api.get(url, headers={"If-None-Match": etag}).status_code == 304
    head = api.head(url)
    assert (head.status_code, head.content, head.headers["Content-Length"]) == (200, b"", str(len(whole.content)))
    assert api.get(url, headers={"Range": "bytes=99999999-"}).status_code == 416


def test_what_is_asked_for_again_or_in_parts_is_converted_once(api: TestClient, saes: str, settings: Settings, job_id: str) -> None:
    url = f"{saes}/a/download?format=gemma_scope"
    assert api.head(url).status_code == 200
    stored = settings.data_dir / "storage" / "jobs" / job_id / "one" / "saes" / "a" / "sae_weights.safetensors"
    stored.rename(stored.with_suffix(".away"))
    whole = api.get(url).content
    assert b"".join(api.get(url, headers={"Range": f"bytes={at}-{at + 999}"}).content for at in range(0, len(whole), 1000)) == whole


@pytest.mark.parametrize(
    ("path", "status", "code", "param", "text"),
    [
        ("/a/download?format=pickle", 400, "invalid_request", "format", "'gemma_scope'"),
        ("/a/download", 400, "invalid_request", "format", "missing"),
        ("/b/download?format=gemma_scope", 422, "invalid_spec", "format", "Write it as"),
        ("/a/download?format=sparsify", 422, "invalid_spec", "format", "TopK SAEs only"),
        ("/c/download?format=saelens", 404, "not_found", "name", "it has a, b"),
    ],
)
def test_what_cannot_be_converted_is_refused_by_the_parameter(
    api: TestClient, saes: str, path: str, status: int, code: str, param: str, text: str
) -> None:
    refused = api.get(saes + path)
    problem = refused.json()
    assert (refused.status_code, problem["code"], problem["param"]) == (status, code, param)
    assert refused.headers["Content-Type"] == "application/problem+json"
    assert problem["errors"][0]["pointer"] == param
    assert text in problem["errors"][0]["detail"]


def test_an_unknown_job_or_checkpoint_is_not_found(api: TestClient, saes: str) -> None:
    for path in (saes.replace("latest", "ckpt_x"), "/v1/jobs/job_x/checkpoints/latest/saes"):
        assert api.get(f"{path}/a/download?format=saelens").status_code == 404


@pytest.mark.parametrize("damage", ["flip a bit", "lose"])
def test_damaged_storage_is_an_error_and_not_a_wrong_file(
    api: TestClient, saes: str, settings: Settings, job_id: str, damage: str
) -> None:
    file = settings.data_dir / "storage" / "jobs" / job_id / "one" / "saes" / "a" / "sae_weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.unlink()
    if damage == "flip a bit":
        file.write_bytes(content)
    answer = api.get(f"{saes}/a/download?format=gemma_scope")
    assert (answer.status_code, answer.json()["code"]) == (500, "damaged_checkpoint")
    assert "Retry-After" not in answer.headers
    assert api.get(f"{saes}/b/download?format=saelens").status_code == 200


def test_a_conversion_touches_no_device_and_imports_no_torch(saes: str, settings: Settings) -> None:
    code = """
import sys
from pathlib import Path
from fastapi.testclient import TestClient
from api.app import create_app
from sae_service.settings import Settings
with TestClient(create_app(Settings(data_dir=Path(sys.argv[1]))), "http://localhost") as api:
    assert api.get(sys.argv[2]).status_code == 200
assert "torch" not in sys.modules
"""
    url = f"{saes}/a/download?format=dictionary_learning"
    # JAX would fail on its first use of a device: there is no such platform.
    command = [sys.executable, "-c", code, str(settings.data_dir), url]
    ended = subprocess.run(command, cwd=ROOT, env={"JAX_PLATFORMS": "none"}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.fixture
def user(api: TestClient) -> client.Client:
    """A client that talks to the application without a network."""
    found = client.Client()
    found._http = api
    return found


def test_the_client_writes_the_files_of_a_format(user: client.Client, job_id: str, tmp_path: Path) -> None:
    paths = user.download(job_id, tmp_path / "out", format=FormatName.dictionary_learning)
    names = {str(path.relative_to(tmp_path / "out")) for path in paths}
    assert names == {f"{sae}/{file}" for sae in SAES for file in ("ae.pt", "config.json", "metrics.json", "provenance.json")}
    assert {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()} == names
    assert user.download(job_id, tmp_path / "out", format="dictionary_learning") == paths, "again, over the first"
    stored = user.download(job_id, tmp_path / "stored")
    assert {path.name for path in stored} == {*FORMATS["saelens"].files, "metrics.json", "provenance.json"}


def test_the_client_passes_on_what_the_service_refuses(user: client.Client, job_id: str, tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidSpec, match="format"):
        user.download(job_id, tmp_path, format="pickle")
    with pytest.raises(errors.InvalidSpec, match="TopK SAEs only"):
        user.download(job_id, tmp_path, format="sparsify")


def test_the_client_writes_nothing_outside_its_folder(
    user: client.Client, job_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(url: str, sha256: str | None, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(target, "w") as archive:
            archive.writestr("../escaped", b"")

    monkeypatch.setattr(user, "_fetch", fetch)
    with pytest.raises(errors.StorageFailure, match="outside"):
        user.download(job_id, tmp_path / "out", format="gemma_scope")
    assert not list(tmp_path.rglob("escaped"))


def test_the_command_line_downloads_in_a_format_and_lists_them(
    user: client.Client, job_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae_service.cli.jobs.Client", lambda url, api_key: user)
    arguments = ["download", job_id, "--output", str(tmp_path / "out"), "--format", "dictionary_learning", "--json"]
    done = CliRunner().invoke(command_line, arguments)
    assert done.exit_code == 0, done.output
    assert str(tmp_path / "out" / "a" / "ae.pt") in json.loads(done.output)
    refused = CliRunner().invoke(command_line, [*arguments[:-2], "gemma_scope"])
    assert (refused.exit_code, "Write it as" in refused.output) == (2, True)
    listed = CliRunner().invoke(command_line, ["download", "--help"], env={"COLUMNS": "200"}).output
    assert all(name in listed for name in FormatName)


def test_a_checkpoint_that_is_retired_while_it_is_converted_is_not_found(
    api: TestClient, job_id: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(settings.resolved_database_url())
    run = Apart.run

    async def retired_first(self: Apart, *arguments: Any) -> Any:
        with database.transaction() as connection:
            connection.execute(sa.delete(tables.checkpoints))
        Storage(settings.resolved_storage_url()).delete(f"jobs/{job_id}/one")
        return await run(self, *arguments)

    monkeypatch.setattr(Apart, "run", retired_first)
    path = f"/v1/jobs/{job_id}/checkpoints/latest/saes/a/download?format=gemma_scope"
    assert api.get(path).status_code == 404


def test_an_api_key_that_no_header_can_carry_is_refused_by_name() -> None:
    with pytest.raises(errors.InvalidSpec, match="api_key: must be printable ASCII"):
        client.Client(api_key="ключ")
