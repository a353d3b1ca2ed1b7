"""What the commands of the command line have in common: which service and which job, how they fail, whether they print JSON."""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from sae_service import errors
from sae_service.client import DEFAULT_URL as DEFAULT_URL
from sae_service.client import Client
from sae_service.plain_words import shown

EXIT_CODES = {
    errors.InvalidSpec: 2, errors.DataNotFound: 2, errors.ModelNotFound: 2, errors.NotFound: 3, errors.ServiceUnavailable: 4,
    errors.Conflict: 6, errors.InvalidSetting: 2, errors.AccessDenied: 7,
}  # fmt: skip
JOB_ID = re.compile(r"job_[0-9a-f]{22}")
LOOKED_AT = 1000
"""The newest jobs, among which one is found by a part of its id."""
OPTIONS = {
    "model/name": "--model", "dataset/path": "--dataset", "hook_name": "--hook", "saes": "--hook", "folder": "--output",
    "metadata": "--label", "name": "NAME", "hook_names": "--hook",
}  # fmt: skip
"""The options and arguments that are not called as the fields that they fill, by the ends of their pointers."""
CHANGE = re.compile(r"/saes/([^/]*)(?:/(?:optimizer|architecture))?(?:/([^/]*))?")
COUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kMB]?)")
MOST = 1 << 63
FACTORS = {"": 1, "k": 1_000, "M": 1_000_000, "B": 1_000_000_000}


def count(text: str | int) -> int:
    """A number of tokens as a user writes it: 200000, 200_000, 200k or 1.5M."""
    found = COUNT.fullmatch(str(text).replace("_", ""))
    number = Decimal(found[1]) * FACTORS[found[2]] if found else Decimal("0.5")
    if number > MOST or number != int(number):
        raise typer.BadParameter(f"must be a whole number, such as 200000, 200k or 2M, not {shown(text)}")
    return int(number)


Url = Annotated[str, typer.Option(envvar="SAE_SERVICE_URL", help="The address of the service.")]
ApiKey = Annotated[str | None, typer.Option(envvar="SAE_SERVICE_API_KEY", help="The API key, if the service asks for one.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder of the database, the checkpoints and the logs.")]
JobId = Annotated[str, typer.Argument(help="The job's id, the beginning or end of one, or latest.")]
Tokens = Annotated[int, typer.Option(parser=count, metavar="TOKENS", help="Tokens in all, those already trained on included.")]
IdempotencyKey = Annotated[str | None, typer.Option(help="A name for this request; repeated with it, it returns the same job.")]
CheckpointId = Annotated[str, typer.Option(help="A checkpoint's id, latest or best.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def option(pointer: str) -> str:
    """The option that has given a field of a request its value."""
    change = CHANGE.fullmatch(pointer)
    if change and not change[1].isdigit():
        return f"--set {'.'.join(part for part in change.groups() if part)}".replace("~1", "/").replace("~0", "~")
    *parents, field = pointer.split("[")[0].split("/")
    if field.isdigit() and parents[-1] == "hook_names":
        field = parents.pop()
    return OPTIONS.get("/".join([*parents[-1:], field])) or OPTIONS.get(field) or f"--{field.replace('_', '-')}"


@contextmanager
def reported(place: Callable[[str], str] = option) -> Iterator[None]:
    """Turns the service's errors into a line for each field and an exit code, and Ctrl-C into a quiet end.

    Args:
        place: the place of a field where the user has written it, by its JSON pointer.
    """
    try:
        yield
    except errors.SAEServiceError as error:
        message = errors.sentences(error.message, error.hint)
        fields = error.fields or (((error.param, message),) if error.param else ())
        for line in [f"{place(pointer)}: {detail}" for pointer, detail in fields if pointer] or [message]:
            typer.echo(f"sae-service: {line}", err=True)
        codes = (code for kind, code in EXIT_CODES.items() if isinstance(error, kind))
        raise typer.Exit(next(codes, 5)) from None
    except UnicodeEncodeError as error:
        typer.echo(f"sae-service: {error.object[:60]!a} holds what cannot be sent as text", err=True)
        raise typer.Exit(EXIT_CODES[errors.InvalidSpec]) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except BrokenPipeError:
        sys.stderr.close()
        raise typer.Exit(0) from None


def listed(found: Iterable[Any], table: Callable[[list[Any]], Any], as_json: bool) -> None:
    """Prints records, as a table or as JSON."""
    from sae_service import text_tables

    records = list(found)
    if as_json:
        typer.echo(json.dumps([one.model_dump() for one in records], indent=1))
    else:
        text_tables.show(table(records))


def full_id(client: Client, given: str) -> str:
    """The id of the job that is meant by an id, its beginning or its end, or `latest`. Raises NotFound."""
    if JOB_ID.fullmatch(given):
        return given
    if not given:
        raise errors.NotFound("the job's id is empty")
    if given == "latest":
        found = [job.id for job in client.jobs(limit=1)]
    else:
        newest = (job.id for job in islice(client.jobs(), LOOKED_AT))
        found = [one for one in newest if one.startswith((given, f"job_{given}")) or one.endswith(given)]
    if not found:
        raise errors.NotFound(f"there is no job {given!r} among the newest {LOOKED_AT}")
    return the_only(given, found, "jobs")


def the_only(given: str, found: list[str], what: str) -> str:
    """The one thing that is meant by a part of its id. Raises NotFound if there are several.

    Args:
        found: those whose ids have this part, at least one.
        what: what they are.
    """
    if len(found) > 1:
        raise errors.NotFound(f"{given} can be any of {len(found)} {what}: {', '.join(found[:3])}...")
    return found[0]
