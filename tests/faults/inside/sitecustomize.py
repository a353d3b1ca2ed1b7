"""Runs at the start of every Python process whose PYTHONPATH has this folder: faults from outside the product's code.

FAULTS_INSIDE is JSON: {"module": "workers.job_process", "log": path, "poison": metadata key, "set": {"module:NAME": value},
"crash": {"at": "sae_service.storage.objects:Storage.publish", "when": "before" or "after", "call": 3, "once": path}}.
"""

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main(wanted: dict[str, Any]) -> None:
    """Arranges for what is wanted, if this process runs the module that is meant."""
    if wanted["module"] not in sys.orig_argv:
        return
    if "set" in wanted:
        # Not now: to import them takes seconds, in which the process would not yet notice that its worker has ended.
        wrap("sae_service.storage.cache:ActivationCache.__init__", before=lambda *_: set_all(wanted["set"]))
    if "crash" in wanted:
        crash(**wanted["crash"])
    if "log" in wanted:
        wrap("sae_service.training.loop:Trainer.step", before=lambda *_: note(Path(wanted["log"])))
        wrap("sae_service.pipeline:train", before=lambda job, around: JOB.append(around.prefix))
    if "poison" in wanted:
        wrap("sae_service.pipeline:train", before=lambda job, *_: poisoned(job, wanted["poison"]))


def set_all(values: dict[str, Any]) -> None:
    """Sets constants of modules, as a job opens the activation cache."""
    for at, value in values.items():
        module, _, name = at.partition(":")
        assert hasattr(importlib.import_module(module), name), at
        setattr(importlib.import_module(module), name, value)


JOB: list[str] = []


def note(path: Path) -> None:
    """One line for each step that this process trains, by a clock that all processes of the machine share."""
    line = json.dumps({"t": time.monotonic(), "pid": os.getpid(), "job": JOB[-1]}) + "\n"
    with path.open("a") as file:
        file.write(line)


def poisoned(job: Any, key: str) -> None:
    """Takes the worker down with it, as a job that exhausts the machine's memory may."""
    if key in job.metadata:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)


def crash(at: str, when: str, call: int, once: str) -> None:
    """Kills this process before or after the n-th call; the file `once` says that it has happened."""
    calls = [0]

    def die(*_: Any) -> None:
        calls[0] += 1
        if calls[0] == call and not Path(once).exists():
            Path(once).write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)

    wrap(at, **{when: die})


def wrap(at: str, before: Callable[..., None] | None = None, after: Callable[..., None] | None = None) -> None:
    """Puts something before or after every call of a function or method."""
    module, _, path = at.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        if before is not None:
            before(*arguments)
        result = original(*arguments, **named)
        if after is not None:
            after(*arguments)
        return result

    setattr(owner, name, wrapped)


if "FAULTS_INSIDE" in os.environ:
    main(json.loads(os.environ["FAULTS_INSIDE"]))
