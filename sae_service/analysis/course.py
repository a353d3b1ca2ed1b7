"""A look's way through its text: what is told on the way, when it is saved, and where it stops. All jobs that look go it."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int

from sae_service.errors import Stopped
from sae_service.news import Checkpoint, Reporter
from sae_service.storage.checkpoint import OnHost
from sae_service.storage.checkpoint_writer import CheckpointWriter

State = tuple[dict[str, Any], dict[str, Any]]
"""The arrays and the values from which a look goes on."""


class Batch(Protocol):
    """What was read at once."""

    @property
    def tokens(self) -> Int[np.ndarray, "prompts context_size"]:
        """Its tokens."""
        ...


class Look(Protocol):
    """What goes the way."""

    @property
    def wanted_tokens(self) -> int:
        """Tokens that are to be read."""
        ...

    @property
    def n_tokens(self) -> int:
        """Tokens that have been read, those that are left out too."""
        ...

    def batches(self) -> Iterator[Batch]:
        """What is left of the text, batch by batch, each looked at when it comes out."""
        ...

    def figures(self) -> dict[str, dict[str, Any]]:
        """What is told on the way, by what it is about."""
        ...

    def state(self) -> State:
        """Copies of what it goes on from."""
        ...

    def restore(self, state: dict[str, Any], values: dict[str, Any]) -> None:
        """Goes on from a state."""
        ...


@dataclass(frozen=True)
class Pace:
    """How often something is told or saved.

    Attributes:
        log_every: batches of text between two reports.
        every_tokens: tokens of text between two saved states; 0: by the writer's clock.
    """

    log_every: int
    every_tokens: int


@dataclass
class Course:
    """The way through the text.

    Attributes:
        stop_if_asked: shows a sign of life; raises Stopped.
        writer: writes what `publish` says while the text is read on.
        publish: makes a checkpoint of a state, after so many batches and tokens.
        said: what is done on text, and after it.
        before: steps and tokens of the job that came before.
        n_batches: so many have been read.
        n_saved: so many the last checkpoint knows of; -1: there is none, and the job would lose something without.
    """

    look: Look
    pace: Pace
    reporter: Reporter
    stop_if_asked: Callable[[], None]
    writer: CheckpointWriter
    publish: Callable[[State, int, int], Any]
    said: tuple[str, str] = ("Looking at latents", "Looking at the directions of the latents.")
    before: tuple[int, int] = (0, 0)
    n_batches: int = 0
    n_saved: int = 0
    _began: float = field(default_factory=time.monotonic)
    _n_at_start: int = 0

    def go_on_from(self, state: State) -> None:
        """Begins where a state was saved."""
        self.look.restore(*state)
        self.n_batches = self.n_saved = state[1]["n_batches"]
        self._n_at_start = self.n_tokens

    @property
    def n_tokens(self) -> int:
        """Tokens that have been read, those that are left out too."""
        return self.look.n_tokens

    def to_end(self, publish_results: Callable[[], Checkpoint]) -> Checkpoint:
        """Reads what is left and publishes what comes of it. Raises Stopped, once it has saved where it is."""
        try:
            self._pass_over_text()
            self.writer.finish()
            self.reporter.event("info", self.said[1])
            return publish_results()
        except Stopped:
            self.save()
            self.writer.finish()
            raise

    def _pass_over_text(self) -> None:
        """Reads what is left. Raises Stopped."""
        wanted, every = self.look.wanted_tokens, self.pace.every_tokens
        self.reporter.event("info", f"{self.said[0]} on {wanted:,} tokens of text.")
        self.stop_if_asked()
        for batch in self.look.batches():
            self.n_batches += 1
            self.writer.check()
            if self.n_batches % self.pace.log_every == 0:
                self._tell()
            self.stop_if_asked()
            n_before = self.n_tokens - batch.tokens.size
            if (self.n_tokens // every > n_before // every) if every else self.writer.is_due():
                self.save()
        if self.n_tokens < wanted:
            self.reporter.event("info", f"The text has only {self.n_tokens:,} tokens, and {wanted:,} were asked for.")
        self._tell()

    def _tell(self) -> None:
        """Reports how far it is."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        steps, tokens = self.before
        pace = {
            "step": steps + self.n_batches,
            "tokens": tokens + self.n_tokens,
            "tokens_per_s": (self.n_tokens - self._n_at_start) / seconds,
        }
        self.reporter.metrics([{"sae": name, **pace, **found} for name, found in self.look.figures().items()])

    def save(self) -> None:
        """Publishes a checkpoint while the text is read on, if the last one does not have it all."""
        if self.n_saved < self.n_batches:
            self.n_saved = self.n_batches
            self.writer.write(lambda: partial(self.publish, self._state(), self.n_batches, self.n_tokens))

    def _state(self) -> State:
        arrays, values = self.look.state()
        return arrays, values | {"n_batches": self.n_batches}


def shapes_of(values: dict[str, Any]) -> dict[str, OnHost]:
    """The arrays of a state, as its values describe them."""
    return {name: OnHost(tuple(shape), dtype) for name, (shape, dtype) in values["shapes"].items()}
