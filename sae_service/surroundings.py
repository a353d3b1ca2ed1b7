"""What an attempt at a job is given beside its spec: where its files go, whom it tells, and how it learns that it is to stop."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from sae_service import hosts
from sae_service.news import Checkpoint, Reporter
from sae_service.readable import EVERYWHERE, Roots
from sae_service.storage.cache import ActivationCache
from sae_service.storage.objects import Content, Storage

Files = Mapping[str, Content] | Iterator[tuple[str, Content]]


@dataclass(frozen=True)
class Surroundings:
    """Those of an attempt at a job of any kind.

    Attributes:
        prefix: key below which checkpoints are published, each under a name of its own.
        resume_from: keys of checkpoints, the newest first; the job goes on from the first that is not damaged, to the
            same result as without the interruption.
        begin_with: key of the checkpoint of another job, to go on from or to look at.
        device: the language model's device, "cpu" or "cuda".
        alive: called with every step and every forward pass, from more than one thread.
        roots: where the files of the job may be; everywhere, for a process that reads its own user's files.
        cache: the activation cache, for jobs that want it.
    """

    storage: Storage
    prefix: str
    reporter: Reporter
    should_stop: Callable[[], bool] = lambda: False
    resume_from: Sequence[str] = ()
    begin_with: str | None = None
    device: str = "cpu"
    alive: Callable[[], None] = lambda: None
    roots: Roots = EVERYWHERE
    cache: ActivationCache | None = None

    def warn(self, message: str) -> None:
        """Tells the user what may need a look."""
        self.reporter.event("warning", message)

    def publish(
        self, files: Files, step: int, tokens: int, metrics: dict[str, Any], is_final: bool, score: float | None = None
    ) -> Checkpoint:
        """Writes a checkpoint under a key of its own, and reports it once it is complete; of several hosts one does.

        Raises Stopped if whoever makes the files is.
        """
        key, began = f"{self.prefix}/step-{step:09d}-{uuid4().hex[:12]}", time.monotonic()
        entries = self.storage.publish(key, files) if hosts.leads() else []
        written = Checkpoint(key, step, tokens, is_final, entries, metrics, score, time.monotonic() - began)
        if hosts.leads():
            self.reporter.checkpoint(written)
        return written
