"""The command line and the client before a service that trains nothing."""

import copy
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml
from click.testing import Result
from typer.testing import CliRunner

from sae_service import errors
from sae_service.cli import app
from sae_service.client import Client
from sae_service.jobs import tables
from sae_service.jobs.attempts import Attempt
from sae_service.jobs.database import Database
from sae_service.jobs.rows import add_event
from sae_service.jobs.store import JobStore
from sae_service.settings import Settings
from sae_service.spec import JobSpec
from sae_service.storage import artifacts, attempt_logs
from sae_service.storage.objects import Content, Storage
from tests.saes import random_sae
from tests.served import served

OPTIMIZER = "of the optimizer: beta1, beta2, clip_norm, eps, lr, lr_decay, lr_warm_up, lr_warm_up_shape, sparsity_warm_up"
FIXED = f"cannot change when a job goes on; what can, of the architecture: aux_coefficient, k; {OPTIMIZER}"
MARKUP = ("org/m[/b]", "[bold]x", ":smile:", "[/red]")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Settings]]:
    """The address of a service without a worker, and its settings."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("service"))
    with served(settings) as address:
        yield address, settings


@pytest.fixture
def address(running: tuple[str, Settings]) -> str:
    return running[0]


@pytest.fixture
def database(running: tuple[str, Settings]) -> Database:
    return Database(running[1].resolved_database_url())


@pytest.fixture
def service(address: str) -> Client:
    return Client(address)


@pytest.fixture
def run(address: str) -> Callable[..., Result]:
    def called(*arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments), env={"SAE_SERVICE_URL": address, "COLUMNS": "200"})

    return called


def finished(database: Database, settings: Settings, job_id: str, seed: int = 3) -> str:
    """The job, as if its SAEs had been trained."""
    job = JobSpec.model_validate(JobStore(database).get(job_id).spec)
    attempt = Attempt(database, job_id, 1)
    assert attempt.claim("worker-1") is not None
    files: dict[str, Content] = {}
    for sae in job.saes:
        written = artifacts.to_files(random_sae("topk"), job, sae, {"seed": seed}) | {artifacts.METRICS: b'{"fvu": 0.1}'}
        files |= {f"saes/{sae.name}/{name}": content for name, content in written.items()}
    key = f"jobs/{job_id}/one"
    entries = Storage(settings.resolved_storage_url()).publish(key, files)
    metrics = {sae.name: {"fvu": 0.1, "l0": 8.0} for sae in job.saes}
    attempt.commit({"key": key, "step": 40, "tokens": 10_240, "is_final": True, "files": entries, "metrics": metrics}, keep=1)
    return job_id


@pytest.fixture
def of_topk(spec: dict[str, Any]) -> dict[str, Any]:
    sae = spec["saes"][0] | {"name": "topk_64", "architecture": {"kind": "topk", "d_sae": 64, "k": 16}}
    return spec | {"saes": [sae]}


def test_a_mistake_in_a_job_is_told_with_its_file_line_and_place(
    run: Callable[..., Result], tmp_path: Path, of_topk: dict[str, Any]
) -> None:
    of_topk["saes"][0]["architecture"]["k"] = 100
    of_topk["optimiser"] = {}
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(of_topk, sort_keys=False))
    lines = path.read_text().splitlines()
    k, optimiser = (next(n for n, line in enumerate(lines, 1) if line.strip().startswith(name)) for name in ("k:", "optimiser:"))
    refused = run("submit", str(path))
    assert refused.exit_code == 2
    known = ", ".join(sorted(JobSpec.model_fields))
    assert refused.stderr.splitlines() == [
        f"sae-service: {path}, line {optimiser}: optimiser: there is no field 'optimiser'; there are {known}",
        f"sae-service: {path}, line {k}: saes[0].architecture.k: must be at most d_sae (64)",
    ]  # fmt: skip


def test_what_is_missing_is_told_with_the_line_of_the_part_that_lacks_it(run: Callable[..., Result], tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("stream:\n  batch: 8\n  synthetic: {n_features: 4}\nsaes:\n  - hook_name: hook_synthetic\n")
    told = run("submit", str(path)).stderr
    assert f"{path}, line 3: stream.synthetic.d_in: is missing\n" in told
    assert f"{path}, line 1: stream.tokens: is missing\n" in told
    assert f"{path}, line 5: saes[0].architecture: is missing\n" in told


def test_the_remedy_for_a_fork_is_an_option_of_fork(
    run: Callable[..., Result], service: Client, running: tuple[str, Settings], database: Database, of_topk: dict[str, Any]
) -> None:
    job_id = finished(database, running[1], service.submit(of_topk).id)
    for arguments, message in (
        (("--set", "topk_64.k=8"), "--tokens: must be at least 10496: the checkpoint is at 10240 tokens and a step is 256"),
        (("--set", "topk_64.k=65", "--tokens", "20480"), "--set topk_64.k: must be at most d_sae (64)"),
        (("--set", "topk_64.d_sae=128", "--tokens", "20480"), f"--set topk_64.d_sae: {FIXED}"),
        (("--set", "topk_64.kk=8"), "--set topk_64.kk: there is no field 'kk'; did you mean 'k'?"),
        (("--set", "topk_64.lr=fast"), '--set topk_64.lr: must be a number, not "fast"'),
        (("--set", "b.lr=1"), "--set b.lr: there is no SAE 'b'; there are topk_64"),
        (("--set", "a/b.lr=1"), "--set a/b.lr: there is no SAE 'a/b'; there are topk_64"),
        (("--set", "lr=1"), "--set lr: must be SAE.FIELD=NUMBER, such as topk_64.lr=1e-4"),
        (("--set", "topk_64.lr"), "--set topk_64.lr: must be SAE.FIELD=NUMBER, such as topk_64.lr=1e-4"),
    ):
        refused = run("fork", job_id, *arguments)
        assert (refused.exit_code, refused.stderr) == (2, f"sae-service: {message}\n")
    refused = run("extend", job_id, "--tokens", "5")
    assert (refused.exit_code, refused.stderr.startswith("sae-service: --tokens: must be at least")) == (2, True)
    missing = run("fork", job_id, "--tokens", "20480", "--checkpoint", "nothing")
    assert (missing.exit_code, missing.stderr.startswith("sae-service: --checkpoint: job ")) == (3, True)


def test_a_checkpoint_that_is_not_there_is_told_in_words(
    run: Callable[..., Result], service: Client, of_topk: dict[str, Any], tmp_path: Path
) -> None:
    job_id = service.submit(of_topk).id
    for arguments, message in (
        ((), f"job {job_id} has no checkpoint yet"),
        (("--checkpoint", "first"), f"job {job_id} has no checkpoint 'first'; name one by its id, or as latest or best"),
        (("--checkpoint", "../x"), "'../x' is no job or checkpoint: jobs have ids, checkpoints an id, latest or best"),
    ):
        told = run("download", job_id, "--output", str(tmp_path), *arguments)
        assert (told.exit_code, told.stderr) == (3, f"sae-service: {message}\n")


@pytest.mark.parametrize("name", ["[/b]", "[bold]x", "a b"])
def test_a_name_that_no_key_can_have_is_blamed_on_the_name(name: str, tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["keys", "create", name, "--scopes", "read", "--data-dir", str(tmp_path)])
    assert (told.exit_code, told.stderr.splitlines()[-1].startswith(f"sae-service: NAME: {name!r} cannot be used")) == (2, True)


def test_what_a_jobs_state_does_not_allow_has_an_exit_code_of_its_own(
    run: Callable[..., Result], service: Client, running: tuple[str, Settings], database: Database, of_topk: dict[str, Any]
) -> None:
    job_id = finished(database, running[1], service.submit(of_topk).id)
    assert "topk_64" in run("watch", job_id).stdout.split("training ")[-1], "the held-out figures come last"
    refused = run("cancel", job_id)
    assert (refused.exit_code, refused.stderr) == (6, f"sae-service: job {job_id} has already succeeded\n")


def test_a_job_is_found_by_the_beginning_or_the_end_of_its_id(
    run: Callable[..., Result], service: Client, spec: dict[str, Any]
) -> None:
    first, latest = service.submit(spec).id, service.submit(spec).id
    for given in (latest, "latest", latest[-8:], latest[4:23]):
        assert json.loads(run("show", given, "--json").stdout)["id"] == latest
    assert (run("cancel", first[-8:]).stdout, service.job(first).status) == ("cancelled\n", "cancelled")
    several = run("show", "job_0")
    assert (several.exit_code, "can be any of" in several.stderr) == (3, True)
    assert run("show", "job_nothing").exit_code == 3


def test_a_list_is_short_and_chosen_by_label(run: Callable[..., Result], tmp_path: Path, of_topk: dict[str, Any]) -> None:
    many = [copy.deepcopy(of_topk["saes"][0]) | {"name": f"sae-{index}"} for index in range(64)]
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(of_topk | {"saes": many, "metadata": {"team": "a"}}))
    ids = [run("submit", str(path), "--label", f"run={index}").stdout.strip() for index in range(3)]
    assert run("submit", str(path), "--label", "nothing").stderr == "sae-service: --label: must be NAME=VALUE, not 'nothing'\n"
    listed = run("list", "--limit", "2", "--label", "team=a")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["job", ids[2], ids[1]]
    assert "sae-0, sae-1, sae-2 and 61 more" in listed.stdout
    assert "--limit 4" in listed.stderr
    chosen = json.loads(run("list", "--label", "team=a", "--label", "run=0", "--json").stdout)
    assert [job["id"] for job in chosen] == ids[:1]
    assert run("list", "--label", "team=a", "--status", "running").stdout == "No jobs.\n"
    assert "team=a, run=0" in run("show", ids[0]).stdout
    assert run("list", "--status", "dead").exit_code == 2


def test_names_and_messages_are_shown_letter_by_letter(
    run: Callable[..., Result], service: Client, database: Database, spec: dict[str, Any]
) -> None:
    job_id = service.submit(spec).id
    with database.transaction() as connection:
        shown = copy.deepcopy(JobStore(database).get(job_id).spec)
        shown["stream"]["model"]["name"] = " ".join(MARKUP)
        connection.execute(sa.update(tables.jobs).where(tables.jobs.c.id == job_id).values(spec=shown))
        add_event(connection, job_id, "message", f"read {' '.join(MARKUP)} and more", {}, "info")
    told = run("show", job_id)
    assert told.exit_code == 0, told.exception
    assert told.stdout.count(" ".join(MARKUP)) == 2


def test_show_ends_with_what_happened_last(
    run: Callable[..., Result], service: Client, database: Database, spec: dict[str, Any]
) -> None:
    job_id = service.submit(spec).id
    with database.transaction() as connection:
        for index in range(2005):
            add_event(connection, job_id, "message", f"event {index}", {}, "info")
    assert [event.message for event in service.events(job_id)][1:] == [f"event {index}" for index in range(2005)]
    told = run("show", job_id, "--events", "3").stdout
    assert told.split("event ")[1:][-1].strip() == "2004"
    assert ("event 2002" in told, "event 2001" in told) == (True, False)


def test_a_second_format_or_another_sae_in_the_same_folder_is_refused_before_anything_is_written(
    run: Callable[..., Result], service: Client, running: tuple[str, Settings], database: Database, of_topk: dict[str, Any],
    tmp_path: Path,
) -> None:  # fmt: skip
    job_id, other = (finished(database, running[1], service.submit(of_topk).id, seed) for seed in (3, 4))
    assert run("download", job_id, "--output", str(tmp_path)).exit_code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for arguments in ((job_id, "--format", "sparsify"), (other,)):
        refused = run("download", *arguments, "--output", str(tmp_path))
        assert (refused.exit_code, "--output: " in refused.stderr, "Nothing was written" in refused.stderr) == (2, True, True)
    assert run("download", job_id, "--output", str(tmp_path)).exit_code == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_what_is_left_of_an_interrupted_download_is_completed(
    service: Client, running: tuple[str, Settings], database: Database, of_topk: dict[str, Any], tmp_path: Path
) -> None:
    job_id = finished(database, running[1], service.submit(of_topk).id)
    paths = service.download(job_id, str(tmp_path))
    paths[0].unlink()
    assert service.download(job_id, str(tmp_path)) == paths
    assert all(path.is_file() for path in paths)


def test_before_its_first_step_a_job_is_followed_by_what_it_does(
    run: Callable[..., Result], service: Client, database: Database, spec: dict[str, Any]
) -> None:
    job_id = service.submit(spec).id
    assert Attempt(database, job_id, 1).claim("worker-1") is not None
    with database.transaction() as connection:
        add_event(connection, job_id, "message", "Loading the model [/].", {}, "info")
    steps = service.follow(job_id, pause_s=0.01)
    assert next(steps)[1] == "Loading the model [/]."
    threading.Timer(1.0, service.cancel, (job_id,)).start()
    threading.Timer(2.0, _end, (database, job_id)).start()
    told = run("watch", job_id)
    assert (told.exit_code, told.stdout.splitlines()[:2]) == (1, [job_id, "running: Loading the model [/]."])
    assert [phase for _, phase in steps] == [""], "of a job that runs no more it says nothing"


@pytest.mark.parametrize("arguments", [("watch",), ("watch", "--json"), ("logs", "-f")], ids=" ".join)
def test_a_paused_job_is_followed_to_its_pause_and_how_it_goes_on_is_said(
    run: Callable[..., Result], service: Client, spec: dict[str, Any], arguments: tuple[str, ...]
) -> None:
    job_id = service.submit(spec).id
    service.pause(job_id)
    told = run(*arguments, job_id)
    assert (told.exit_code, told.stderr) == (6, f"The job is paused; `sae-service resume {job_id}` lets it go on.\n")
    assert ("paused" in told.stdout) == ("watch" in arguments)


def _end(database: Database, job_id: str) -> None:
    with database.transaction() as connection:
        connection.execute(sa.update(tables.jobs).where(tables.jobs.c.id == job_id).values(status="cancelled"))


def test_a_job_that_is_not_there_is_not_found(service: Client) -> None:
    with pytest.raises(errors.NotFound):
        service.job("job_nothing")


def test_the_log_of_a_job_is_printed_as_it_is_and_followed_to_its_end(
    run: Callable[..., Result], service: Client, running: tuple[str, Settings], spec: dict[str, Any]
) -> None:
    job, storage = service.submit(spec), Storage(running[1].resolved_storage_url())
    assert f"job {job.id} has no log yet" in run("logs", job.id).stderr
    waiting = service.submit(spec).id
    threading.Timer(0.5, service.cancel, (waiting,)).start()
    told = run("logs", waiting, "-f")
    assert (told.exit_code, told.stderr.splitlines()[0]) == (3, "The job is queued; it has no log yet.")
    attempt_logs.store(storage, job.id, 1, b"[bold]one\ntwo\n")
    attempt_logs.store(storage, job.id, 2, b"three\nfour\n")
    assert run("logs", job.id, "--attempt", "1").stdout == "[bold]one\ntwo\n"
    assert run("logs", job.id, "--lines", "1").stdout == "four\n"
    service.cancel(job.id)
    assert run("logs", job.id, "-f").stdout == "three\nfour\n"
    missing = run("logs", job.id, "--attempt", "7")
    assert (missing.exit_code, "--attempt: attempt 7 of job" in missing.stderr) == (3, True)
