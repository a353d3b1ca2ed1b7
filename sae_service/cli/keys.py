"""The commands on the API's keys. They work on the database of the settings; what opens it is imported when asked for."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from sae_service.cli.common import AsJson, DataDir, reported
from sae_service.settings import load

app = typer.Typer(no_args_is_help=True, help="Makes, lists and revokes API keys, in the database of the settings.")
Name = Annotated[str, typer.Argument(help="The key's name.")]


@app.command()
def create(
    name: Name,
    scopes: Annotated[str, typer.Option(help="What it may do, separated by commas: read, submit, manage.")],
    project: Annotated[str, typer.Option(help="Whose jobs it sees if SAE_SERVICE_PROJECTS is on.")] = "default",
    expires: Annotated[int | None, typer.Option(min=1, max=36_500, help="Days until it expires. Default: never.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Makes a key and prints it once. As soon as there is a key, the service asks every client for one."""
    with reported():
        typer.echo(_keys(data_dir).create(name, tuple(scope.strip() for scope in scopes.split(",")), project, expires))


@app.command("list")
def list_keys(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Lists the keys, revoked and expired ones too."""
    from sae_service import text_tables

    with reported():
        found = [key.model_dump() | {"is_valid": key.is_valid} for key in _keys(data_dir).all()]
        if as_json:
            typer.echo(json.dumps(found, indent=1))
        else:
            text_tables.show(text_tables.keys(found))


@app.command()
def revoke(name: Name, data_dir: DataDir = None) -> None:
    """Revokes a key. Running services refuse it within five seconds."""
    with reported():
        _keys(data_dir).revoke(name)
        typer.echo(f"revoked {name}")


def key() -> None:
    """Makes an API key for the environment: the key for clients, and the line that makes the service accept it."""
    from sae_service.jobs import keys

    made = keys.made()
    typer.echo(f"key, shown only now:  {made}")
    typer.echo(f"for the service:      SAE_SERVICE_API_KEY_SHA256='[\"{keys.hashed(made)}\"]'")


def _keys(data_dir: Path | None) -> Any:
    from sae_service.jobs.keys import Keys

    found = Keys.at(load(data_dir).resolved_database_url())
    typer.echo(f"Keys of {found.where}", err=True)
    return found
