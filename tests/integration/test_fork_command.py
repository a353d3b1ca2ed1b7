"""`sae-service fork` before a service that trains nothing."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from sae_service.cli import app
from sae_service.client import Client
from sae_service.jobs.attempts import Attempt
from sae_service.jobs.database import Database
from sae_service.settings import Settings
from tests import synthetic_jobs
from tests.attempts import checkpoint
from tests.served import served

CAN = "beta1, beta2, clip_norm, eps, lr, lr_decay, lr_warm_up, lr_warm_up_shape, sparsity_warm_up"


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    with served(settings) as address:
        yield Client(address)


@pytest.fixture
def fork(client: Client, settings: Settings) -> Callable[..., Result]:
    """The command, of a job that has a checkpoint at step 6."""
    job = client.submit(synthetic_jobs.job(40))
    attempt = Attempt(Database(settings.resolved_database_url()), job.id, 1)
    assert attempt.claim("worker-1") is not None
    attempt.commit(checkpoint(6) | {"key": "one"}, 1)
    return lambda *options: CliRunner().invoke(app, ["fork", job.id, *options, "--url", client.url])


def spec_of(client: Client, made: Result) -> dict[str, Any]:
    assert made.exit_code == 0, made.stderr
    return client.job(made.stdout.strip()).spec


def test_a_fork_may_have_other_gpus(client: Client, fork: Callable[..., Result]) -> None:
    assert spec_of(client, fork("--gpus", "2"))["gpus"] == 2
    assert spec_of(client, fork())["gpus"] == 1
    assert fork("--gpus", "0").exit_code == 2


def test_a_fork_takes_numbers_and_words_and_says_what_cannot_change(client: Client, fork: Callable[..., Result]) -> None:
    changed = spec_of(client, fork("--set", "standard.lr=1e-4", "--set", "standard.lr_warm_up_shape=cosine"))["saes"][0]
    assert (changed["optimizer"]["lr"], changed["optimizer"]["lr_warm_up_shape"]) == (1e-4, "cosine")
    for field, value in (("second_moment", "int8"), ("d_sae", "64")):
        refused = fork("--set", f"standard.{field}={value}")
        of_architecture = "of the architecture: l1_coefficient"
        assert refused.stderr == (
            f"sae-service: --set standard.{field}: cannot change when a job goes on; what can, {of_architecture}; "
            f"of the optimizer: {CAN}\n"
        )
    assert f"there are {', '.join(sorted(['l1_coefficient', *CAN.split(', ')]))}\n" in fork("--set", "standard.x=1").stderr
