"""The commands that make a job, look at it and fetch what it has made."""

import json
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from sae_service import errors
from sae_service.cli.common import (
    DEFAULT_URL,
    EXIT_CODES,
    ApiKey,
    AsJson,
    CheckpointId,
    IdempotencyKey,
    JobId,
    Url,
    full_id,
    listed,
    reported,
)
from sae_service.cli.job_file import JobFile
from sae_service.client import Client
from sae_service.jobs.records import Checkpoint, Job, Status
from sae_service.schema import OWN_FORMAT, FormatName

T = TypeVar("T")
Labels = Annotated[list[str] | None, typer.Option("--label", help="NAME=VALUE in the job's metadata; may be repeated.")]


def submit(
    spec: Annotated[str, typer.Argument(help="A job as YAML or JSON; - reads standard input.")],
    label: Labels = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    idempotency_key: IdempotencyKey = None,
    follow: Annotated[bool, typer.Option("--watch", help="Then follow the job, as `watch` does.")] = False,
    as_json: AsJson = False,
) -> None:
    """Queues a job and prints its id. Paths in the file that begin with '.' are relative to the file."""
    with reported():
        client, labels, file = Client(url, api_key), labels_of(label), JobFile(spec)

    def place(pointer: str) -> str:
        part, name = (*pointer.split("/"), "", "")[1:3]
        return f"--label {name}" if part == "metadata" and name in labels else file.place(pointer)

    with reported(place):
        body = file.spec()
        if labels:
            body["metadata"] = (body.get("metadata") or {}) | labels
        job = client.submit(body, idempotency_key)
    typer.echo(job.model_dump_json(indent=1) if as_json and not follow else job.id)
    if follow:
        with reported():
            raise typer.Exit(_watch(client, job.id, as_json, is_error=True))


def labels_of(given: list[str] | None) -> dict[str, str]:
    """`NAME=VALUE` as labels. Raises InvalidSpec."""
    pairs = [label.partition("=") for label in given or []]
    for name, equals, value in pairs:
        if not (name and equals):
            raise errors.InvalidSpec(f"must be NAME=VALUE, not {name + value!r}", "label")
    return {name: value for name, _, value in pairs}


def list_jobs(
    limit: Annotated[int, typer.Option(min=1, help="How many to list.")] = 20,
    status: Annotated[Status | None, typer.Option(help="Only jobs with this status.")] = None,
    label: Labels = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Lists jobs, newest first."""
    from sae_service import text_tables

    with reported():
        found = list(Client(url, api_key).jobs(status, labels_of(label), limit + 1))
        if as_json:
            typer.echo(json.dumps([job.model_dump() for job in found[:limit]], indent=1))
            return
        if not found:
            typer.echo("No jobs.")
            return
        text_tables.show(text_tables.jobs(found[:limit]))
        if len(found) > limit:
            typer.echo(f"These are the newest {limit}. To see older ones too: --limit {2 * limit}", err=True)


def show(
    job_id: JobId,
    events: Annotated[int, typer.Option(min=0, help="How many of the last events to show.")] = 20,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Shows one job: its state, figures, checkpoints and latest events."""
    from sae_service import text_tables

    with reported():
        client = Client(url, api_key)
        job = client.job(full_id(client, job_id))
        if as_json:
            typer.echo(job.model_dump_json(indent=1))
            return
        checkpoints, happened = client.checkpoints(job.id), client.events(job.id)
        newest = happened[max(0, len(happened) - events) :]
        text_tables.show(text_tables.job(job), text_tables.checkpoints(checkpoints), text_tables.events(newest))
        _show_results(job, checkpoints)


def _show_results(job: Job, checkpoints: list[Checkpoint], is_error: bool = False) -> None:
    """Shows the held-out figures, if the newest checkpoint is the final one."""
    from sae_service import text_tables

    if job.is_training and checkpoints and checkpoints[0].is_final:
        text_tables.show(text_tables.results(job, checkpoints[0]), is_error=is_error)


def watch(job_id: JobId, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Follows a job to its end, or until it is paused. Exit code 0 if it succeeded, 1 if not, 6 if it is paused."""
    with reported():
        client = Client(url, api_key)
        raise typer.Exit(_watch(client, full_id(client, job_id), as_json))


def followed(client: Client, job_id: str) -> None:
    """Follows a job on standard error. Ends the command if the job does not succeed."""
    if code := _watch(client, job_id, as_json=False, is_error=True):
        raise typer.Exit(code)


def _watch(client: Client, job_id: str, as_json: bool, is_error: bool = False) -> int:
    from sae_service import text_tables

    last: Job | None = None
    if as_json:
        for last in _until_paused(client.watch(job_id), lambda job: job):
            typer.echo(last.model_dump_json(exclude={"spec"}))
    else:
        last = text_tables.follow(_until_paused(client.follow(job_id), itemgetter(0)), is_error)
        if last is not None and last.status == "succeeded":
            _show_results(last, client.checkpoints(job_id), is_error)
    assert last is not None
    if last.status == "paused":
        return _told_how_to_go_on(job_id)
    if last.error is not None:
        typer.echo(f"{last.error.code}: {last.error.message}", err=True)
    return 0 if last.status == "succeeded" else 1


def _told_how_to_go_on(job_id: str) -> int:
    """Says what lets a paused job go on. Returns the exit code."""
    typer.echo(f"The job is paused; `sae-service resume {job_id}` lets it go on.", err=True)
    return EXIT_CODES[errors.Conflict]


def logs(
    job_id: JobId,
    attempt: Annotated[int | None, typer.Option(min=1, help="The attempt; by default the last one that has a log.")] = None,
    lines: Annotated[int | None, typer.Option(min=1, max=10_000, help="Only the last N lines.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print what is added too, to the job's end or pause.")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Prints the end of what a job's training process has logged. Exit code 6 if it was followed to the job's pause."""
    with reported():
        client = Client(url, api_key)
        full = full_id(client, job_id)
        if follow and (job := client.job(full)).status == "queued" and job.started_at is None:
            typer.echo("The job is queued; it has no log yet.", err=True)
        for part in client.follow_logs(full, attempt, lines) if follow else [client.logs(full, attempt, lines)]:
            typer.echo(part, nl=False)
        job = client.job(full) if follow else None
        if job is not None and job.status == "paused" and attempt in (None, job.attempt):
            raise typer.Exit(_told_how_to_go_on(full))


def _until_paused(changes: Iterable[T], job_of: Callable[[T], Job]) -> Iterator[T]:
    """The changes of a job up to its pause: nothing more happens until its user resumes it."""
    for change in changes:
        yield change
        if job_of(change).status == "paused":
            return


def list_workers(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Lists the workers that are running, and the job that each works on."""
    from sae_service import text_tables

    with reported():
        listed(Client(url, api_key).workers(), text_tables.workers, as_json)


def download(
    job_id: JobId,
    output: Annotated[Path, typer.Option(help="The folder to write to; each SAE gets a folder of its own in it.")],
    checkpoint: CheckpointId = "latest",
    format: Annotated[FormatName, typer.Option(help="The library that will read them.")] = OWN_FORMAT,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Downloads the SAEs of a job's checkpoint. What is in the folder is never overwritten."""
    with reported():
        client = Client(url, api_key)
        paths = [str(path) for path in client.download(full_id(client, job_id), output, checkpoint, format)]
        typer.echo(json.dumps(paths, indent=1) if as_json else "\n".join(paths))
