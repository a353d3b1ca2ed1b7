"""Work on files in processes of their own, a few at once, each for a limited time.

A file can take for ever to be read, or take all memory, and what reads it may be stuck where no thread can be ended. So the
process is ended, and the API answers.
"""

import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from anyio import CapacityLimiter, Semaphore, fail_after, to_thread

from sae_service.errors import ServiceUnavailable

T = TypeVar("T")
PRELOADED = ["sae_service.preflight", "sae_service.storage.artifacts", "api.zipped", "datasets", "pyarrow.parquet", "scipy.io"]
START_S, END_S = 60, 5
_context = get_context("forkserver")


def prepare() -> None:
    """Starts what the processes are forked from: it imports what they need, which takes seconds, and begins no threads.

    A program of one's own that serves the API does so below `if __name__ == "__main__"`, as all that use `multiprocessing`.
    """
    _context.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()


class TooLong(Exception):
    """A process has not come to an end in its time."""


class Apart:
    """Runs functions in processes. It takes none of the threads that serve other requests."""

    def __init__(self, at_once: int) -> None:
        """Makes one that runs so many at once; the others wait."""
        self._turns = Semaphore(at_once)
        self._threads = CapacityLimiter(at_once)

    async def run(self, limit_s: float, function: Callable[..., T], *arguments: Any) -> T:
        """What the function returns or raises. It and its arguments are pickled, so it is one of a module.

        Args:
            limit_s: how long its process may take, and how long it may wait for its turn.

        Raises:
            TooLong: its process took longer, and has been ended.
            ServiceUnavailable: others took all of the time; or the process was ended from outside.
        """
        try:
            with fail_after(limit_s):
                await self._turns.acquire()
        except TimeoutError:
            raise ServiceUnavailable("the service is busy with the files of other requests", hint="Ask again later.") from None
        try:
            return await to_thread.run_sync(_result, limit_s, function, arguments, limiter=self._threads)
        finally:
            self._turns.release()


def _result(limit_s: float, function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    ours, theirs = _context.Pipe(duplex=False)
    process = _context.Process(target=_carry_out, args=(theirs, function, arguments), daemon=True)
    with ours:
        with theirs:
            process.start()
        try:
            if not ours.poll(START_S):
                raise ServiceUnavailable(f"no process could be started in {START_S} s")
            ours.recv()
            if not ours.poll(limit_s):
                raise TooLong
            value, error = ours.recv()
            process.join(END_S)
        except EOFError:
            raise ServiceUnavailable("the process that looked at the files was ended from outside") from None
        finally:
            process.kill()
            process.join(END_S)
    if error is not None:
        raise error
    return value


def _carry_out(answers: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    answers.send(None)  # From here on its time counts.
    try:
        answer = function(*arguments), None
    except Exception as error:  # noqa: BLE001  whatever it is, it is raised where the function was asked for
        error.add_note(traceback.format_exc())
        answer = None, error
    with suppress(OSError):
        answers.send(answer)
