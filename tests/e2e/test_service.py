"""The service as its users run it: real processes, killed and stopped in the middle of a job."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.service import CLI, Service, children_of, is_alive, worker_of

DEMO = Path(__file__).parents[2] / "sae_service" / "demo"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("service"))
    yield service
    if service.process.poll() is None:
        service.interrupt()


@pytest.fixture
def long_spec(spec: dict[str, Any]) -> dict[str, Any]:
    spec["stream"]["tokens"] = 300 * 256
    spec["checkpoints"] = {"every_tokens": 20 * 256}
    return spec


def step_folders(service: Service, job_id: str) -> list[Path]:
    """Where the job's checkpoints are stored, and what else its training has left."""
    return list((service.data_dir / "storage" / "jobs" / job_id).glob("step-*"))


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, bytes]:
    """The weights of the long job, filled in by the first test that trains it."""
    return {}


def test_a_job_goes_from_the_command_line_to_saes_on_disk(
    service: Service, long_spec: dict[str, Any], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    def sae_service(*arguments: str) -> str:
        command = [*CLI, *arguments, "--url", service.url]
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout

    (tmp_path / "job.yaml").write_text(yaml.safe_dump(long_spec))
    job_id = sae_service("submit", "job.yaml").strip()
    last = json.loads(sae_service("watch", job_id, "--json").splitlines()[-1])
    assert (last["status"], last["attempt"], last["progress"]["tokens"]) == ("succeeded", 1, 300 * 256)
    assert job_id in sae_service("list")
    assert json.loads(sae_service("list", "--json"))[0]["id"] == job_id
    shown = sae_service("show", job_id)
    assert "The job succeeded." in shown
    assert "ce_loss_recovered" in shown
    written = json.loads(sae_service("download", job_id, "--output", "saes", "--json"))
    assert (tmp_path / "saes" / "a" / "metrics.json").is_file()
    assert len(written) == 8
    undisturbed.update(service.weights(service.client.job(job_id), tmp_path / "saes"))
    steps = [(row.sae, row.step) for row in service.client.metrics(job_id)]
    assert steps == [(sae, step) for step in range(5, 301, 5) for sae in ("a", "b")]
    kept = [checkpoint.step for checkpoint in service.client.checkpoints(job_id)]
    assert kept == [300, 280, 260], "the final checkpoint and the last two before it"
    assert len(step_folders(service, job_id)) == len(kept)


def test_a_worker_that_is_killed_takes_its_child_along_and_the_job_ends_with_the_same_bytes(
    service: Service, long_spec: dict[str, Any], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    job = service.started(long_spec)
    worker, (child,) = worker_of(job), children_of(worker_of(job))
    os.kill(worker, signal.SIGKILL)
    service.until(lambda: not is_alive(child))
    ended = service.ended(job)
    assert (ended.status, ended.attempt) == ("succeeded", 2)
    assert worker_of(ended) != worker
    assert service.weights(ended, tmp_path) == undisturbed
    assert len(step_folders(service, job.id)) == len(service.client.checkpoints(job.id)), "nothing is left of what was cut off"
    rows = [(row.sae, row.step) for row in service.client.metrics(job.id)]
    assert len(rows) == len(set(rows)) == 120
    ids = [event.id for event in service.client.events(job.id)]
    assert ids == list(range(1, len(ids) + 1))
    assert service.client.logs(job.id, attempt=1), "it was kept from its first word on"


def test_a_training_process_that_is_killed_is_started_again_at_its_checkpoint(
    service: Service, long_spec: dict[str, Any], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    job = service.started(long_spec)
    (child,) = children_of(worker_of(job))
    os.kill(child, signal.SIGKILL)
    ended = service.ended(job)
    assert (ended.status, ended.attempt) == ("succeeded", 2)
    assert service.weights(ended, tmp_path) == undisturbed
    assert any("crash 1 of 3" in event.message for event in service.client.events(job.id))


def test_a_paused_job_has_no_process_and_goes_on_to_the_same_bytes_even_from_a_damaged_checkpoint(
    service: Service, long_spec: dict[str, Any], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    job = service.started(long_spec)
    (child,) = children_of(worker_of(job))
    assert service.client.pause(job.id).status == "pausing"
    service.until(lambda: service.client.job(job.id).status == "paused")
    assert not is_alive(child)
    saved = service.client.checkpoints(job.id)[0].step
    assert saved >= service.client.job(job.id).progress.step  # pyright: ignore[reportOptionalMemberAccess]
    newest = max(step_folders(service, job.id))
    (newest / "state" / "arrays.safetensors").write_bytes(b"damaged")
    service.client.resume(job.id)
    ended = service.ended(job)
    assert (ended.status, ended.attempt) == ("succeeded", 2)
    assert service.weights(ended, tmp_path) == undisturbed
    assert any("does not match its manifest" in event.message for event in service.client.events(job.id))


def test_a_cancelled_job_has_no_process_any_more(service: Service, long_spec: dict[str, Any]) -> None:
    job = service.started(long_spec)
    (child,) = children_of(worker_of(job))
    assert service.client.cancel(job.id).status == "cancelling"
    assert service.ended(job).status == "cancelled"
    assert not is_alive(child)


def test_a_job_whose_loss_explodes_fails_and_the_next_one_is_trained(
    service: Service, long_spec: dict[str, Any], spec: dict[str, Any]
) -> None:
    bad = json.loads(json.dumps(long_spec))
    bad["saes"][0]["optimizer"]["lr"] = 1e30
    failed = service.ended(service.client.submit(bad))
    assert failed.error is not None
    assert (failed.status, failed.error.code, failed.attempt) == ("failed", "nan_loss", 1)
    command = [*CLI, "watch", failed.id, "--url", service.url]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 1
    assert "nan_loss" in told.stderr


def test_why_a_job_failed_is_in_its_log_which_can_be_read_from_elsewhere_and_goes_with_the_job(
    service: Service, spec: dict[str, Any]
) -> None:
    spec["saes"][0]["optimizer"]["lr"] = 1e30
    failed = service.ended(service.client.submit(spec))
    log = service.client.logs(failed.id)
    assert "Traceback (most recent call last)" in log
    assert failed.error is not None
    assert failed.error.message in log
    command = [*CLI, "logs", failed.id, "--url", service.url]
    assert subprocess.run([*command, "-f"], capture_output=True, text=True).stdout == log
    assert subprocess.run([*command, "--lines", "1"], capture_output=True, text=True).stdout == log.splitlines(keepends=True)[-1]
    ended = f"INFO attempts: the attempt has ended: failed (nan_loss): {failed.error.message} [job={failed.id} attempt=1]"
    assert ended in (service.data_dir / "serve.log").read_text()
    service.client.delete(failed.id)
    assert not (service.data_dir / "storage" / "jobs" / failed.id).exists()


def test_ctrl_c_keeps_the_job_and_a_new_start_ends_it_with_the_same_bytes(
    service: Service, long_spec: dict[str, Any], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    job = service.started(long_spec)
    (child,) = children_of(worker_of(job))
    assert service.interrupt() == 0
    assert not is_alive(child)
    service.start()
    ended = service.ended(job)
    assert (ended.status, ended.attempt) == ("succeeded", 2)
    assert service.weights(ended, tmp_path) == undisturbed
    assert any(event.data.get("status_reason") == "preempted" for event in service.client.events(job.id))


def test_a_server_that_is_killed_leaves_no_process_behind_and_can_be_started_again(tmp_path: Path) -> None:
    service = Service(tmp_path)
    left = children_of(service.process.pid)
    assert len(left) == 2
    service.process.kill()
    service.process.wait()
    service.until(lambda: not any(is_alive(process) for process in left))
    service.start()
    assert service.interrupt() == 0


def test_the_readmes_own_model_and_text_are_trained_on(service: Service, tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    text = re.findall(r"```yaml\n(.*?)```", readme, flags=re.DOTALL)[0]
    # The README's job, shortened.
    (tmp_path / "job.yaml").write_text(text.replace("2_000_000", "30_000"))
    shutil.copytree(DEMO / "model", tmp_path / "my-model")
    (tmp_path / "my-text").mkdir()
    verses = ("In the beginning was the word, and the word was with me.", "Let there be light: and there was light.")
    documents = [{"text": " ".join(verses) * 20 + str(number)} for number in range(400)]
    (tmp_path / "my-text" / "train.jsonl").write_text("\n".join(json.dumps(document) for document in documents))

    def sae_service(*arguments: str) -> str:
        command = [*CLI, *arguments, "--url", service.url]
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout

    job_id = sae_service("submit", "job.yaml").strip()
    sae_service("watch", job_id)
    sae_service("download", job_id, "--output", "saes")
    written = {path.name for path in (tmp_path / "saes" / "jumprelu_1024").iterdir()}
    assert written == {"cfg.json", "sae_weights.safetensors", "metrics.json", "provenance.json"}


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["show", "job_nothing"], 3, "there is no job 'job_nothing'"),
        (["submit", "nothing.yaml"], 2, "cannot read nothing.yaml"),
        (["submit", "bad.yaml"], 2, "stream: is missing"),
        (["list", "--url", "http://127.0.0.1:1"], 4, "does not answer"),
        (["watch"], 2, "Missing argument"),
        (["show", ""], 3, "is empty"),
        (["show", "a?b"], 3, "there is no job 'a?b'"),
        (["submit", "nan.yaml"], 2, "stream.tokens: nan"),
        (["submit", "date.yaml"], 2, "metadata.day: datetime.date"),
    ],
)
def test_exit_codes_mean_something(service: Service, tmp_path: Path, arguments: list[str], code: int, text: str) -> None:
    (tmp_path / "bad.yaml").write_text("saes: []\n")
    (tmp_path / "nan.yaml").write_text("stream: {tokens: .nan}\n")
    (tmp_path / "date.yaml").write_text("metadata: {day: 2026-01-01}\n")
    environment = os.environ | {"SAE_SERVICE_URL": service.url}
    ended = subprocess.run([*CLI, *arguments], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (ended.returncode, text in ended.stderr) == (code, True), ended.stderr
