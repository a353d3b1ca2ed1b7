"""The commands that change a job that is there, or make a new one of it."""

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any

import typer

from sae_service import errors
from sae_service.cli.common import DEFAULT_URL, ApiKey, AsJson, IdempotencyKey, JobId, Url, reported
from sae_service.client import Client
from sae_service.jobs.records import Job

Tokens = Annotated[int, typer.Option(help="Tokens in all, those already trained on included.")]


def cancel(job_id: JobId, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Ends a job. What it has saved stays."""
    _changed(lambda: Client(url, api_key).cancel(job_id), as_json)


def pause(job_id: JobId, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Saves a job and holds it; its worker is free for another."""
    _changed(lambda: Client(url, api_key).pause(job_id), as_json)


def resume(job_id: JobId, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Lets a paused job go on."""
    _changed(lambda: Client(url, api_key).resume(job_id), as_json)


def extend(
    job_id: JobId, tokens: Tokens, idempotency_key: IdempotencyKey = None, url: Url = DEFAULT_URL,
    api_key: ApiKey = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Trains the SAEs of a finished job on more tokens, as a new job. Prints its id."""
    _made(lambda: Client(url, api_key).extend(job_id, tokens, idempotency_key), as_json)


def fork(
    job_id: JobId,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="SAE.FIELD=VALUE: a number of its optimizer or architecture, such as a.lr=1e-4."),
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="A checkpoint's id, latest or best.")] = "latest",
    tokens: Annotated[int | None, typer.Option(help="Tokens in all. Default: as many as the job's.")] = None,
    idempotency_key: IdempotencyKey = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Goes on from a job's checkpoint with other numbers, as a new job; the old one is not touched. Prints the new id."""

    def forked() -> Job:
        client = Client(url, api_key)
        body: dict[str, Any] = {"saes": numbers(changes or [], client.job(job_id).spec)}
        return client.fork(job_id, body | ({"tokens": tokens} if tokens is not None else {}), checkpoint, idempotency_key)

    _made(forked, as_json)


def numbers(changes: list[str], spec: dict[str, Any]) -> dict[str, Any]:
    """`SAE.FIELD=VALUE` as the changes of a fork. Raises InvalidSpec."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for change in changes:
        place, _, text = change.partition("=")
        name, _, field = place.rpartition(".")
        sae = next((sae for sae in spec["saes"] if sae["name"] == name), None)
        part = next((part for part in ("optimizer", "architecture") if sae is not None and field in sae[part]), None)
        value = _number(text)
        if part is None or value is None:
            names = ", ".join(sae["name"] for sae in spec["saes"])
            raise errors.InvalidSpec(f"{change} is not SAE.FIELD=NUMBER with a field of one of the SAEs {names}")
        found.setdefault(name, {}).setdefault(part, {})[field] = value
    return found


def _number(text: str) -> float | None:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text) if math.isfinite(kind(text)) else None
    return None


def retry(
    job_id: JobId, idempotency_key: IdempotencyKey = None, url: Url = DEFAULT_URL, api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Tries a failed or cancelled job again from its last checkpoint, as a new job. Prints its id."""
    _made(lambda: Client(url, api_key).retry(job_id, idempotency_key), as_json)


def delete(
    job_id: JobId,
    is_sure: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Deletes a job that has ended, with its metrics and all its checkpoints."""
    with reported():
        if not is_sure:
            typer.confirm(f"Delete {job_id} and all its checkpoints?", abort=True)
        Client(url, api_key).delete(job_id)


def _changed(change: Callable[[], Job], as_json: bool) -> None:
    with reported():
        job = change()
        typer.echo(job.model_dump_json(indent=1) if as_json else job.status)


def _made(make: Callable[[], Job], as_json: bool) -> None:
    with reported():
        job = make()
        typer.echo(job.model_dump_json(indent=1) if as_json else job.id)
