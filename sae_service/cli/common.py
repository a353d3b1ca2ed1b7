"""What the commands of the command line have in common: where the service is, how they fail, whether they print JSON."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from sae_service import errors
from sae_service.client import DEFAULT_URL as DEFAULT_URL

EXIT_CODES = {
    errors.InvalidSpec: 2, errors.DataNotFound: 2, errors.ModelNotFound: 2, errors.NotFound: 3, errors.ServiceUnavailable: 4,
}  # fmt: skip


Url = Annotated[str, typer.Option(envvar="SAE_SERVICE_URL", help="Where the service is.")]
ApiKey = Annotated[str | None, typer.Option(envvar="SAE_SERVICE_API_KEY", help="Its key, if it asks for one.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder of the database, the checkpoints and the logs.")]
JobId = Annotated[str, typer.Argument(help="The job's id.")]
IdempotencyKey = Annotated[str | None, typer.Option(help="A repetition with the same key returns the first job.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


@contextmanager
def reported() -> Iterator[None]:
    """Turns the service's errors into one line and an exit code, and Ctrl-C into a quiet end."""
    try:
        yield
    except errors.SAEServiceError as error:
        typer.echo(f"sae-service: {error}", err=True)
        codes = (code for kind, code in EXIT_CODES.items() if isinstance(error, kind))
        raise typer.Exit(next(codes, 5)) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except BrokenPipeError:
        sys.stderr.close()
        raise typer.Exit(0) from None
