"""The command line. Exit codes: 0 done, 1 the job failed or was cancelled, 2 wrong input, 3 no such thing,
4 the service does not answer, 5 anything else, 6 the job's state does not allow it, 7 the API key is missing, unknown, or may not
do this.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from sae_service import __version__
from sae_service.cli import cache, changes, jobs, keys, latents, prompted, saes, statistics
from sae_service.cli.common import DataDir, reported
from sae_service.cli.config import config
from sae_service.schema import DEFAULT_PORT
from sae_service.settings import environment

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)


def serve(
    data_dir: DataDir = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = DEFAULT_PORT,
    workers: Annotated[int, typer.Option(min=0, help="How many jobs to train at the same time.")] = 1,
    devices: Annotated[
        str | None, typer.Option(help="The GPUs of each worker: '0;1' starts two workers with one GPU each. Overrides --workers.")
    ] = None,
) -> None:
    """Runs the whole service on this machine: the API and its workers. Ctrl-C stops it; running jobs are saved first."""
    arguments = ["--host", host, "--port", str(port), "--workers", str(workers)]
    _become("workers.serve", [*arguments, *(["--devices", devices] if devices else [])], data_dir)


def worker(
    data_dir: DataDir = None,
    queue: Annotated[str, typer.Option(help="The queue to take jobs from.")] = "default",
    device: Annotated[str | None, typer.Option(help="The GPUs that it trains on, as in CUDA_VISIBLE_DEVICES.")] = None,
) -> None:
    """Runs one worker. Many machines share SAE_SERVICE_DATABASE_URL (PostgreSQL) and SAE_SERVICE_STORAGE_URL (S3).

    With SAE_SERVICE_HOSTS several hosts are one worker, for jobs that are split over the GPUs of all of them.
    """
    _become("workers", ["--queue", queue, *(["--device", device] if device else [])], data_dir)


def _become(module: str, arguments: list[str], data_dir: Path | None) -> None:
    # The same process goes on as the service: its signals and its exit status are the service's own.
    changed = environment({"DATA_DIR": None if data_dir is None else str(data_dir.resolve())})
    os.execve(sys.executable, [sys.executable, "-m", module, *arguments], changed)


def demo(output: Annotated[Path, typer.Option(help="Where to write the SAEs and the picture.")] = Path("demo_output")) -> None:
    """Trains a standard, a gated and a JumpReLU SAE on the language model that comes with the package."""
    from sae_service.demo import show

    with reported():
        raise typer.Exit(show.main(output))


def _say_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"sae-service {__version__}")
        raise typer.Exit


@app.callback(help=__doc__)
def main(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_say_version, help="Print the version.")] = False,
) -> None:
    """The options of all commands."""


# In the order of a day's work, as `--help` lists them.
PANELS = {
    "Start": {"demo": demo, "serve": serve},
    "Jobs": {
        "submit": jobs.submit, "watch": jobs.watch, "list": jobs.list_jobs, "show": jobs.show, "logs": jobs.logs,
        "download": jobs.download,
        "pause": changes.pause, "resume": changes.resume, "cancel": changes.cancel, "delete": changes.delete,
    },
    "New jobs from old ones": {"extend": changes.extend, "fork": changes.fork, "retry": changes.retry},
    "What latents do": {
        "look": latents.look, "saes": latents.list_saes, "latents": latents.list_latents, "latent": latents.show_latent,
        "export": latents.export, "explain": latents.explain,
    },
    "What latents do to what a model says": {
        "steer": prompted.steer, "steering": prompted.show_steering,
        "attribute": prompted.attribute, "attribution": prompted.show_attribution,
    },
    "SAEs in folders": {"evaluate": saes.evaluate, "compare": saes.compare},
    "The service's machines and keys": {"workers": jobs.list_workers, "worker": worker, "config": config, "key": keys.key},
}  # fmt: skip
for panel, commands in PANELS.items():
    for name, command in commands.items():
        app.command(name, rich_help_panel=panel)(command)
app.add_typer(statistics.app, name="statistics", rich_help_panel="What a model's activations are like")
app.add_typer(keys.app, name="keys", rich_help_panel="The service's machines and keys")
app.add_typer(cache.app, name="cache", rich_help_panel="The service's machines and keys")
