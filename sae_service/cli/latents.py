"""The commands on what the latents of finished SAEs do."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from sae_service import errors
from sae_service.analysis.records import ExportFormat, Order, Sort
from sae_service.cli.common import DEFAULT_URL, ApiKey, AsJson, IdempotencyKey, JobId, Url, count, full_id, listed, reported
from sae_service.cli.jobs import watch
from sae_service.client import Client

SAEId = Annotated[
    str, typer.Argument(metavar="SAE", help="A job's id (its beginning or end, or latest), a point, and the SAE's name.")
]
MOST = 1 << 20


def look(
    job_id: JobId,
    sae: Annotated[list[str] | None, typer.Option(help="One of the job's SAEs; may be repeated. Default: all.")] = None,
    tokens: Annotated[int, typer.Option(parser=count, metavar="TOKENS", help="Tokens that are read.")] = 1_000_000,
    dataset: Annotated[str | None, typer.Option(help="Text that is read whole. Default: the job's held-out text.")] = None,
    split: Annotated[str, typer.Option(help="The split of that text.")] = "train",
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    idempotency_key: IdempotencyKey = None,
    follow: Annotated[bool, typer.Option("--watch", help="Then follow the job, as `watch` does.")] = False,
) -> None:
    """Queues a job that looks at what each latent of a finished job's SAEs does. Prints its id."""
    with reported():
        client = Client(url, api_key)
        spec: dict[str, Any] = {"kind": "latents", "job": full_id(client, job_id), "saes": sae or [], "tokens": tokens}
        made = client.submit(spec | ({} if dataset is None else {"dataset": {"path": dataset, "split": split}}), idempotency_key)
        typer.echo(made.id)
    if follow:
        watch(made.id, url, api_key)


def list_saes(
    limit: Annotated[int, typer.Option(min=1, help="How many to list.")] = 20,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Lists finished SAEs, those of the newest jobs first."""
    from sae_service import latent_tables

    with reported():
        listed(Client(url, api_key).saes(limit), latent_tables.saes, as_json)


def list_latents(
    sae: SAEId,
    sort: Annotated[Sort, typer.Option(help="largest and mean are of the activations.")] = "latent",
    order: Annotated[Order, typer.Option(help="asc: the smallest first.")] = "asc",
    token: Annotated[str | None, typer.Option(help="Only latents that fire most on this token in one of their passages.")] = None,
    raises: Annotated[str | None, typer.Option(help="Only latents that raise the logit of this token most.")] = None,
    min_density: Annotated[float, typer.Option(min=0, max=1, help="Only latents that fire on this share of the tokens.")] = 0,
    max_density: Annotated[float, typer.Option(min=0, max=1, help="Only latents that fire on at most this share.")] = 1,
    explanation: Annotated[str | None, typer.Option(help="Only latents with these words in an explanation.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MOST, help="How many to list.")] = 20,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Lists the latents of a finished SAE: how often each fires, on which tokens, and which it raises."""
    from sae_service import latent_tables

    with reported():
        client = Client(url, api_key)
        filters = token, raises, min_density, max_density, explanation
        listed(client.latents(full_sae_id(client, sae), sort, order, *filters, limit), latent_tables.latents, as_json)


def show_latent(
    sae: SAEId,
    latent: Annotated[int, typer.Argument(min=0, help="Its number, from 0.")],
    passages: Annotated[int, typer.Option(min=0, help="How many of its strongest passages to show.")] = 10,
    quantiles: Annotated[bool, typer.Option("--quantiles", help="Show passages from each tenth of its activations too.")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Shows one latent: its figures, its neighbours, and passages in which the tokens that it fires on are «marked»."""
    from sae_service import latent_tables, text_tables

    with reported():
        client = Client(url, api_key)
        found = client.latent(full_sae_id(client, sae), latent)
        if as_json:
            typer.echo(found.model_dump_json(indent=1))
            return
        strongest = [one for one in found.passages if one.quantile is None][:passages]
        others = [one for one in found.passages if one.quantile is not None] if quantiles else []
        text_tables.show(latent_tables.latent(found), latent_tables.passages([*strongest, *others]))


def export(
    sae: SAEId,
    output: Annotated[Path, typer.Option(help="The file to write.")],
    format: Annotated[ExportFormat, typer.Option(help="neuronpedia, saedashboard, or prompts: JSON lines for an explainer.")],
    first: Annotated[int, typer.Option(min=0, help="The first latent.")] = 0,
    last: Annotated[int | None, typer.Option(min=0, help="The last latent. Default: that of the SAE.")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Writes latents as a file that another program reads."""
    with reported():
        client = Client(url, api_key)
        typer.echo(str(client.export_latents(full_sae_id(client, sae), output, format, first, last)))


def explain(
    sae: SAEId,
    file: Annotated[Path, typer.Argument(help="JSON lines with latent and text, and maybe author and score.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Stores what people or programs say that latents are about. Each takes the place of an earlier one by the same author."""
    with reported():
        client = Client(url, api_key)
        typer.echo(str(client.explain(full_sae_id(client, sae), _lines(file))))


def _lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines. Raises InvalidSpec."""
    found = list[dict[str, Any]]()
    try:
        for number, line in enumerate(file.read_text().splitlines(), 1):
            if line.strip():
                found.append(json.loads(line))
                if not isinstance(found[-1], dict):
                    raise errors.InvalidSpec(f"line {number} of {file} is no JSON object", "file")
    except (OSError, ValueError) as error:
        raise errors.InvalidSpec(f"cannot read {file}: {error}", "file") from error
    return found


def full_sae_id(client: Client, given: str) -> str:
    """The id of the SAE that is meant by a job and a name; without a name, by a job that has one SAE. Raises NotFound."""
    job_id, _, name = given.partition(".")
    full = full_id(client, job_id)
    if name:
        return f"{full}.{name}"
    names = [sae["name"] for sae in client.job(full).spec["saes"] if isinstance(sae, dict)]
    if len(names) != 1:
        raise errors.NotFound(f"{given} has the SAEs {', '.join(names)}: name one, as {job_id}.{names[0] if names else 'NAME'}")
    return f"{full}.{names[0]}"
