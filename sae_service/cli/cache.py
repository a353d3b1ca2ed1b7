"""The commands on the activation cache of a service."""

import json
from typing import Annotated

import typer

from sae_service.cli.common import DEFAULT_URL, ApiKey, AsJson, Url, reported
from sae_service.client import Client

app = typer.Typer(no_args_is_help=True, help="Lists what the activation cache holds, and deletes parts of it.")


@app.command("list")
def list_streams(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Lists the streams whose rows are in the cache, newest first."""
    from sae_service import text_tables

    with reported():
        found = Client(url, api_key).cached_streams()
        if as_json:
            typer.echo(json.dumps([one.model_dump() for one in found], indent=1))
        else:
            text_tables.show(text_tables.cached_streams(found))


@app.command()
def delete(
    streams: Annotated[list[str], typer.Argument(metavar="STREAM", help="The ids of streams.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Deletes the rows of streams. A job that reads them goes on with the model."""
    with reported():
        client = Client(url, api_key)
        for stream in streams:
            client.delete_cached_stream(stream)
            typer.echo(f"deleted {stream}")
