"""The settings in force, for whoever wonders which they are."""

import json
import re

import typer

from sae_service.cli.common import AsJson, DataDir, reported

# Of a URL: between its user and the last @, or one of its parameters.
PASSWORD = re.compile(r"(://[^/:@]*:).*(?=@)|(?<=[?&]password=)[^&]*")


def config(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Shows the settings that a service started here would use, with passwords and keys hidden."""
    from sae_service import settings

    with reported():
        found = settings.load(data_dir)
        values = {f"{settings.PREFIX}{name.upper()}": _shown(name, value) for name, value in found.model_dump(mode="json").items()}
        given = {f"{settings.PREFIX}{name.upper()}" for name in found.model_fields_set}
        if as_json:
            typer.echo(json.dumps(values, indent=1))
        else:
            for name, value in values.items():
                typer.echo(f"{name}={json.dumps(value)}" + ("" if name in given else "  (default)"))
        for sentence in settings.unknown_variables():
            typer.echo(sentence, err=True)


def _shown(name: str, value: object) -> object:
    from sae_service.settings import is_secret

    if is_secret(name) and value:
        return "***"
    return PASSWORD.sub(lambda found: f"{found[1] or ''}***", value) if isinstance(value, str) else value
