"""The commands that change a job that is there, or make a new one of it."""

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any

import typer

from sae_service import errors
from sae_service.cli.common import (
    DEFAULT_URL,
    ApiKey,
    AsJson,
    CheckpointId,
    IdempotencyKey,
    JobId,
    Tokens,
    Url,
    count,
    full_id,
    reported,
)
from sae_service.client import Client
from sae_service.jobs.records import Job
from sae_service.plain_words import shown, unknown_name
from sae_service.schema import Moments


def cancel(job_id: JobId, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Cancels a job. The checkpoints that it has saved stay."""
    _tell(Client.cancel, "status", url, api_key, job_id, as_json)


def pause(job_id: JobId, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Saves a job and stops it until it is resumed; its worker takes another."""
    _tell(Client.pause, "status", url, api_key, job_id, as_json)


def resume(job_id: JobId, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Queues a paused job again; it goes on where it stopped."""
    _tell(Client.resume, "status", url, api_key, job_id, as_json)


def extend(
    job_id: JobId, tokens: Tokens, idempotency_key: IdempotencyKey = None, url: Url = DEFAULT_URL,
    api_key: ApiKey = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Trains the SAEs of a finished job on more tokens, as a new job. Prints its id."""
    _tell(lambda client, parent: client.extend(parent, tokens, idempotency_key), "id", url, api_key, job_id, as_json)


def fork(
    job_id: JobId,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="SAE.FIELD=VALUE, of its optimizer, such as a.lr=1e-4, or a number of its architecture."),
    ] = None,
    checkpoint: CheckpointId = "latest",
    tokens: Annotated[
        int | None, typer.Option(parser=count, metavar="TOKENS", help="Tokens in all. Default: as many as the job's.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, max=64, help="GPUs of the new job. Default: as many as the job's.")] = None,
    idempotency_key: IdempotencyKey = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Makes a new job that goes on from a job's checkpoint with other numbers; the old job stays as it is. Prints its id."""

    def forked(client: Client, parent: str) -> Job:
        given = {name: value for name, value in (("tokens", tokens), ("gpus", gpus)) if value is not None}
        job = client.job(parent)
        # What is no training job the service refuses.
        saes = numbers(changes or [], job.spec) if job.is_training else {}
        return client.fork(parent, {"saes": saes, **given}, checkpoint, idempotency_key)

    _tell(forked, "id", url, api_key, job_id, as_json)


def numbers(changes: list[str], spec: dict[str, Any]) -> dict[str, Any]:
    """`SAE.FIELD=VALUE` as the changes of a fork. Raises InvalidSpec."""
    saes = {sae["name"]: sae for sae in spec["saes"]}
    found: dict[str, dict[str, dict[str, float | str]]] = {}
    for change in changes:
        place, equals, text = change.partition("=")
        name, _, field = place.rpartition(".")
        pointer = f"/saes/{_escaped(name)}/{_escaped(field)}"
        if not (name and equals):
            raise errors.InvalidSpec(f"must be SAE.FIELD=NUMBER, such as {next(iter(saes))}.lr=1e-4", pointer)
        if name not in saes:
            raise errors.InvalidSpec(unknown_name("SAE", name, saes), pointer)
        parts = {known: part for part in ("architecture", "optimizer") for known in saes[name][part] if known != "kind"}
        if field not in parts:
            raise errors.InvalidSpec(unknown_name("field", field, _changeable(saes[name])), pointer)
        # What a word may be, and which fields may not change, the service says.
        value = text if isinstance(saes[name][parts[field]][field], str) else _number(text)
        if value is None:
            raise errors.InvalidSpec(f"must be a number, not {shown(text)}", pointer)
        found.setdefault(name, {}).setdefault(parts[field], {})[field] = value
    return found


def _changeable(sae: dict[str, Any]) -> set[str]:
    """The fields that a fork may change: the floats of the architecture, and of the optimizer all but how its memory is kept."""
    floats = {name for name, value in sae["architecture"].items() if isinstance(value, float)}
    return floats | (set(sae["optimizer"]) - set(Moments._fields))


def _escaped(part: str) -> str:
    return part.replace("~", "~0").replace("/", "~1")


def _number(text: str) -> float | None:
    for kind in (int, float):
        with suppress(ValueError, OverflowError):
            return kind(text) if math.isfinite(kind(text)) else None
    return None


def retry(
    job_id: JobId, idempotency_key: IdempotencyKey = None, url: Url = DEFAULT_URL, api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Tries a failed or cancelled job again from its last checkpoint, as a new job. Prints its id."""
    _tell(lambda client, parent: client.retry(parent, idempotency_key), "id", url, api_key, job_id, as_json)


def delete(
    job_id: JobId,
    is_sure: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Deletes a job that has ended, with its metrics and all its checkpoints."""
    with reported():
        client = Client(url, api_key)
        job_id = full_id(client, job_id)
        if not is_sure:
            typer.confirm(f"Delete {job_id} and all its checkpoints?", abort=True)
        client.delete(job_id)


def _tell(change: Callable[[Client, str], Job], what: str, url: str, api_key: str | None, job_id: str, as_json: bool) -> None:
    """Changes a job, or makes another of it, and prints `what`, a field of the job that it then is."""
    with reported():
        client = Client(url, api_key)
        job = change(client, full_id(client, job_id))
        typer.echo(job.model_dump_json(indent=1) if as_json else getattr(job, what))
