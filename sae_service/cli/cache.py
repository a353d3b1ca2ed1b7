"""The commands on the activation cache of a service."""

from typing import Annotated

import typer

from sae_service import errors
from sae_service.cli.common import DEFAULT_URL, ApiKey, AsJson, Url, listed, reported, the_only
from sae_service.client import Client

app = typer.Typer(no_args_is_help=True, help="Lists what the activation cache holds, and deletes parts of it.")


@app.command("list")
def list_streams(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Lists the streams whose rows are in the cache, newest first."""
    from sae_service import text_tables

    with reported():
        listed(Client(url, api_key).cached_streams(), text_tables.cached_streams, as_json)


@app.command()
def delete(
    streams: Annotated[list[str], typer.Argument(metavar="STREAM", help="The ids of streams, or the beginning or end of each.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Deletes the rows of streams. A job that reads them goes on with the model."""
    with reported():
        client = Client(url, api_key)
        known = [stream.id for stream in client.cached_streams()]
        # All of them are found before one is deleted.
        for stream in [_meant(given, known) for given in streams]:
            client.delete_cached_stream(stream)
            typer.echo(f"deleted {stream}")


def _meant(given: str, known: list[str]) -> str:
    """The id of the stream that is meant by an id, its beginning or its end. Raises NotFound."""
    found = [one for one in known if given and (one.startswith(given) or one.endswith(given))]
    if not found:
        raise errors.NotFound(f"there is no cached stream {given!r}")
    return the_only(given, found, "cached streams")
