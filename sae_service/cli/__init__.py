"""The command line. Exit codes: 0 done, 1 the job failed or was cancelled, 2 wrong input, 3 no such thing,
4 the service does not answer, 5 anything else.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sae_service import errors
from sae_service.cli import changes, saes
from sae_service.cli.common import DEFAULT_URL, ApiKey, AsJson, IdempotencyKey, JobId, Url, reported
from sae_service.cli.config import config
from sae_service.client import Client
from sae_service.jobs.records import Job
from sae_service.schema import OWN_FORMAT, FormatName
from sae_service.settings import environment

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
for command in (
    *(changes.cancel, changes.pause, changes.resume, changes.extend, changes.fork, changes.retry, changes.delete),
    *(saes.evaluate, saes.compare, config),
):
    app.command()(command)

DataDir = Annotated[Path | None, typer.Option(help="Folder of the database, the checkpoints and the logs.")]


@app.command()
def serve(
    data_dir: DataDir = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    workers: Annotated[int, typer.Option(min=0, help="Jobs that are trained at the same time.")] = 1,
    devices: Annotated[
        str | None, typer.Option(help="GPUs of each worker, such as '0;1' for two workers; overrides --workers.")
    ] = None,
) -> None:
    """Runs the whole service on this machine: the API and its workers. Ctrl-C stops it; jobs in hand are kept."""
    arguments = ["--host", host, "--port", str(port), "--workers", str(workers)]
    _become("workers.serve", [*arguments, *(["--devices", devices] if devices else [])], data_dir)


@app.command()
def worker(
    data_dir: DataDir = None,
    queue: Annotated[str, typer.Option(help="The queue to take jobs from.")] = "default",
    device: Annotated[str | None, typer.Option(help="CUDA_VISIBLE_DEVICES of its training processes.")] = None,
) -> None:
    """Runs one worker. Many machines share SAE_SERVICE_DATABASE_URL (PostgreSQL) and SAE_SERVICE_STORAGE_URL (S3)."""
    _become("workers", ["--queue", queue, *(["--device", device] if device else [])], data_dir)


def _become(module: str, arguments: list[str], data_dir: Path | None) -> None:
    # The same process goes on as the service: its signals and its exit status are the service's own.
    changed = environment({"DATA_DIR": None if data_dir is None else str(data_dir.resolve())})
    os.execve(sys.executable, [sys.executable, "-m", module, *arguments], changed)


@app.command()
def demo(output: Annotated[Path, typer.Option(help="Folder for the SAEs and the picture.")] = Path("demo_output")) -> None:
    """Trains a standard, a gated and a JumpReLU SAE on the language model that comes with the package."""
    from sae_service.demo import show

    with reported():
        raise typer.Exit(show.main(output))


@app.command()
def submit(
    spec: Annotated[str, typer.Argument(help="A job as YAML or JSON; - reads standard input.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    idempotency_key: IdempotencyKey = None,
    follow: Annotated[bool, typer.Option("--watch", help="Follow the job to its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Queues a job. Paths in the file that begin with '.' are relative to the file."""
    with reported():
        client = Client(url, api_key)
        job = client.submit(read_spec(spec), idempotency_key)
        typer.echo(job.model_dump_json(indent=1) if as_json and not follow else job.id)
        if follow:
            raise typer.Exit(_watch(client, job.id, as_json))


def read_spec(source: str) -> dict[str, Any]:
    """The job in a file, paths made absolute. Raises InvalidSpec."""
    import yaml

    folder = Path.cwd() if source == "-" else Path(source).expanduser().resolve().parent
    try:
        text = sys.stdin.read() if source == "-" else Path(source).expanduser().read_text()
        spec = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise errors.InvalidSpec(f"cannot read {source}: {error}") from error
    if not isinstance(spec, dict):
        raise errors.InvalidSpec(f"{source} is no job: it must be a mapping with the keys stream and saes")
    try:
        _check_json(spec)
    except RecursionError:
        raise errors.InvalidSpec(f"{source} is nested too deeply, or a part of it contains itself") from None
    stream, saes = spec.get("stream"), spec.get("saes")
    parts = [(stream, "model", "name"), (stream, "dataset", "path")]
    parts += [(sae, "initial", "path") for sae in (saes if isinstance(saes, list) else [])]
    for parent, part, key in parts:
        named = parent.get(part) if isinstance(parent, dict) else None
        value = named.get(key) if isinstance(named, dict) else None
        if isinstance(named, dict) and isinstance(value, str) and value.startswith((".", "~")):
            named[key] = str((folder / Path(value).expanduser()).resolve())
    return spec


def _check_json(value: Any, pointer: str = "") -> None:
    """Raises InvalidSpec for what YAML knows but JSON does not: dates, NaN, bytes."""
    if isinstance(value, dict):
        for name, item in value.items():
            _check_json(name, f"{pointer}/{name}")
            _check_json(item, f"{pointer}/{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_json(item, f"{pointer}/{index}")
    else:
        try:
            json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError):
            hint = "Put it in quotes if it is meant as text."
            raise errors.InvalidSpec(f"{value!r} cannot be part of a job", pointer, hint) from None


@app.command("list")
def list_jobs(
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    status: Annotated[str | None, typer.Option(help="Only jobs with this status.")] = None,
    as_json: AsJson = False,
) -> None:
    """Shows all jobs, newest first."""
    from sae_service import text_tables

    with reported():
        jobs = list(Client(url, api_key).jobs(status))
        if as_json:
            typer.echo(json.dumps([job.model_dump() for job in jobs], indent=1))
        else:
            text_tables.show(text_tables.jobs(jobs))


@app.command()
def show(job_id: JobId, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Shows one job: its state, its figures, its checkpoints and its events."""
    from sae_service import text_tables

    with reported():
        client = Client(url, api_key)
        job = client.job(job_id)
        if as_json:
            typer.echo(job.model_dump_json(indent=1))
            return
        checkpoints = client.checkpoints(job_id)
        text_tables.show(text_tables.job(job), text_tables.checkpoints(checkpoints), text_tables.events(client.events(job_id)))
        if checkpoints and checkpoints[0].is_final:
            text_tables.show(text_tables.results(job, checkpoints[0]))


@app.command()
def watch(job_id: JobId, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Follows a job to its end. Exit code 0 if it succeeded, 1 if not."""
    with reported():
        raise typer.Exit(_watch(Client(url, api_key), job_id, as_json))


def _watch(client: Client, job_id: str, as_json: bool) -> int:
    from sae_service import text_tables

    states = client.watch(job_id)
    if as_json:
        last: Job | None = None
        for last in states:
            typer.echo(last.model_dump_json(exclude={"spec"}))
    else:
        last = text_tables.follow(states)
    assert last is not None
    if last.error is not None:
        typer.echo(f"{last.error.code}: {last.error.message}", err=True)
    return 0 if last.status == "succeeded" else 1


@app.command("workers")
def list_workers(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Lists the workers that are there, and the jobs that they work on."""
    from sae_service import text_tables

    with reported():
        found = Client(url, api_key).workers()
        if as_json:
            typer.echo(json.dumps([one.model_dump() for one in found], indent=1))
        else:
            text_tables.show(text_tables.workers(found))


@app.command()
def download(
    job_id: JobId,
    output: Annotated[Path, typer.Option(help="Folder; each SAE gets one of its own in it.")],
    checkpoint: Annotated[str, typer.Option(help="A checkpoint's id, latest or best.")] = "latest",
    format: Annotated[FormatName, typer.Option(help="The library that is to read them.")] = OWN_FORMAT,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Downloads the SAEs of a job's checkpoint."""
    with reported():
        paths = [str(path) for path in Client(url, api_key).download(job_id, output, checkpoint, format)]
        typer.echo(json.dumps(paths, indent=1) if as_json else "\n".join(paths))


@app.command()
def key() -> None:
    """Makes an API key: the key for clients, and the line that makes the service accept it."""
    import hashlib
    import secrets

    made = f"sae_{secrets.token_urlsafe(32)}"
    typer.echo(f"key, shown only now:  {made}")
    typer.echo(f"for the service:      SAE_SERVICE_API_KEY_SHA256='[\"{hashlib.sha256(made.encode()).hexdigest()}\"]'")
