"""The commands on what latents do to what a model says of given prompts."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sae_service import errors
from sae_service.cli.common import DEFAULT_URL, ApiKey, AsJson, JobId, Url, full_id, reported
from sae_service.cli.jobs import followed
from sae_service.client import Client

SAEId = Annotated[str, typer.Argument(metavar="SAE", help="A finished job's id or a part of it, a point, the SAE's name.")]
Prompts = Annotated[list[str], typer.Option("--prompt", help="A text that the model reads; may be repeated.")]
Columns = Annotated[Path | None, typer.Option(help="Write the figures of each prompt too, to this file (safetensors).")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the result and print it, or only print the job's id.")]
Contrast = Annotated[
    tuple[str, str] | None, typer.Option(help="Two tokens; the difference of their logits is split by what carries the effect.")
]


def _named(client: Client, sae: str) -> dict[str, Any]:
    """The fields that name an SAE of a job. Raises InvalidSpec."""
    job, point, name = sae.partition(".")
    if not point or not name:
        raise errors.InvalidSpec(f"{sae!r} must be a job's id, a point and the SAE's name", "/saes")
    return {"job": full_id(client, job), "saes": [name]}


def steer(
    sae: SAEId,
    latent: Annotated[int, typer.Argument(help="The number of the latent.")],
    prompt: Prompts,
    mode: Annotated[str, typer.Option(help="add, clamp or ablate.")] = "add",
    unit: Annotated[str, typer.Option(help="Of the coefficients: raw (the activations' own), or row_norm.")] = "raw",
    first: Annotated[float, typer.Option("--from", help="The first coefficient.")] = -10,
    last: Annotated[float, typer.Option("--to", help="The last one.")] = 10,
    count: Annotated[int, typer.Option(help="How many.")] = 128,
    logit: Annotated[list[str] | None, typer.Option(help="A token whose logit is followed; may be repeated.")] = None,
    contrast: Contrast = None,
    continue_at: Annotated[list[float] | None, typer.Option(help="A coefficient at which it goes on; may be repeated.")] = None,
    wait: Wait = True,
    columns: Columns = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Steers the model of a finished SAE along a latent, at many coefficients, and shows what it says then."""
    with reported():
        client = Client(url, api_key)
        spec: dict[str, Any] = {
            "kind": "steering", **_named(client, sae), "latent": latent, "prompts": prompt, "mode": mode, "unit": unit,
            "coefficients": {"first": first, "last": last, "count": count}, "logits": logit or [], "contrast": contrast,
            "continuations": {"coefficients": continue_at} if continue_at else None,
        }  # fmt: skip
        made = client.submit(spec)
        if not wait:
            typer.echo(made.id)
            return
        followed(client, made.id)
        _show_steering(client, made.id, columns, as_json)


def show_steering(
    job_id: JobId, columns: Columns = None, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """Shows what a finished job has seen when it steered a model."""
    with reported():
        client = Client(url, api_key)
        _show_steering(client, full_id(client, job_id), columns, as_json)


def _show_steering(client: Client, job_id: str, columns: Path | None, as_json: bool) -> None:
    from sae_service import prompted_tables, text_tables

    found = client.steering(job_id)
    if columns is not None:
        client.download_steering(job_id, columns)
    if as_json:
        typer.echo(found.model_dump_json(indent=1))
    else:
        text_tables.show(*prompted_tables.steering(found))


def attribute(
    job_id: JobId,
    prompt: Prompts,
    contrast: Annotated[tuple[str, str], typer.Option(help="Two tokens: the logit of the first minus that of the second.")],
    sae: Annotated[list[str] | None, typer.Option(help="One of the job's SAEs; may be repeated. Default: all.")] = None,
    counterfactual: Annotated[
        list[str] | None, typer.Option(help="For each prompt another one of as many tokens, whose activations are taken over.")
    ] = None,
    position: Annotated[int, typer.Option(help="After which the logits are read, from 0, or from -1 for the last.")] = -1,
    top: Annotated[int, typer.Option(help="Latents at positions that are kept.")] = 200,
    exact: Annotated[int, typer.Option(help="So many of them are patched one by one.")] = 50,
    wait: Wait = True,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Says what each latent of a finished job's SAEs contributes to a difference of logits, and shows it."""
    with reported():
        client = Client(url, api_key)
        spec: dict[str, Any] = {
            "kind": "attribution", "job": full_id(client, job_id), "saes": sae or [], "prompts": prompt, "contrasts": [contrast],
            "counterfactuals": counterfactual or [], "position": position, "top": top, "exact": exact,
        }  # fmt: skip
        made = client.submit(spec)
        if not wait:
            typer.echo(made.id)
            return
        followed(client, made.id)
        _show_attribution(client, made.id, as_json)


def show_attribution(job_id: JobId, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Shows what a finished job has attributed to latents."""
    with reported():
        client = Client(url, api_key)
        _show_attribution(client, full_id(client, job_id), as_json)


def _show_attribution(client: Client, job_id: str, as_json: bool) -> None:
    from sae_service import prompted_tables, text_tables

    found = client.attribution(job_id)
    if as_json:
        typer.echo(found.model_dump_json(indent=1))
    else:
        text_tables.show(*prompted_tables.attribution(found))
