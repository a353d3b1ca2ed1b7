"""The commands on what the activations of a model are like."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sae_service.cli.common import DEFAULT_URL, ApiKey, AsJson, IdempotencyKey, JobId, Url, count, full_id, reported
from sae_service.cli.jobs import watch
from sae_service.client import Client

app = typer.Typer(no_args_is_help=True, help="Measures what the activations of a model are like, and shows it.")
Tokens = Annotated[int, typer.Option(parser=count, metavar="TOKENS", help="Tokens that are read.")]


@app.command()
def measure(
    model: Annotated[str, typer.Option(help="A folder in Hugging Face format, or a hub name.")],
    dataset: Annotated[str, typer.Option(help="Text: a file, a folder, or a hub name.")],
    split: Annotated[str, typer.Option(help="The split of the text.")] = "train",
    context_size: Annotated[int, typer.Option(help="Tokens in each row that the model reads.")] = 128,
    hook: Annotated[
        list[str] | None, typer.Option(help="A hook point; may be repeated. Default: the residual stream after each block.")
    ] = None,
    tokens: Tokens = 200_000,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    idempotency_key: IdempotencyKey = None,
    follow: Annotated[bool, typer.Option("--watch", help="Then follow the job, as `watch` does.")] = False,
) -> None:
    """Queues a job that measures a model's activations on text. Prints its id. A file has more fields: see `submit`."""
    with reported():
        stream = {
            "model": {"name": _absolute(model)},
            "dataset": {"path": _absolute(dataset), "split": split},
            "context_size": context_size,
        }
        spec: dict[str, Any] = {"kind": "statistics", "stream": stream, "hook_names": hook or [], "tokens": tokens}
        made = Client(url, api_key).submit(spec, idempotency_key)
        typer.echo(made.id)
    if follow:
        watch(made.id, url, api_key)


def _absolute(name: str) -> str:
    """A path as the service would find it; a hub's name as it is."""
    return str(Path(name).expanduser().resolve()) if name.startswith((".", "~")) else name


@app.command()
def show(
    job_id: JobId,
    picture: Annotated[Path | None, typer.Option(help="Draw it too, to this file (.png, .svg, .pdf).")] = None,
    columns: Annotated[Path | None, typer.Option(help="Write the figures by position and dimension too (safetensors).")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Shows what a finished job has measured: norms and their growth, attention, distributions, outliers, and what that says."""
    from sae_service import statistics_picture, statistics_tables, text_tables

    with reported():
        client = Client(url, api_key)
        full = full_id(client, job_id)
        found = client.statistics(full)
        if columns is not None:
            client.download_statistics(full, columns)
        if picture is not None:
            statistics_picture.draw(found, picture)
        if as_json:
            typer.echo(found.model_dump_json(indent=1))
        else:
            text_tables.show(*statistics_tables.parts(found))
