"""The log of every process of the service, on standard error: one form, one clock, and what each line is about."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

LogFormat = Literal["plain", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
OWN = ("sae_service", "api", "workers", "serve", "attempts", "lost_attempts", "migration", "retention", "training")
"""The loggers of the service. Libraries are heard only when they warn: most of them greet at their start."""

_about: ContextVar[dict[str, Any] | None] = ContextVar("about", default=None)


def configure(form: LogFormat, level: LogLevel, **always: Any) -> None:
    """Makes this process log.

    Args:
        always: what every line is about, on whatever thread: a training process has one job and one attempt.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if form == "json" else _Plain())
    handler.addFilter(_About(always))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in OWN:
        logging.getLogger(name).setLevel(level.upper())
    # With a handler it adds none of its own.
    logging.getLogger("dbos").addHandler(logging.NullHandler())


@contextmanager
def about(**fields: Any) -> Iterator[None]:
    """What the lines of this thread or task are about meanwhile: a request's id, or a job and its attempt."""
    token = _about.set((_about.get() or {}) | fields)
    try:
        yield
    finally:
        _about.reset(token)


class _About(logging.Filter):
    """Gives each record the fields of what it is about; a call adds its own as `extra={"about": {...}}`."""

    def __init__(self, always: dict[str, Any]) -> None:
        super().__init__()
        self._always = always

    def filter(self, record: logging.LogRecord) -> bool:
        fields = self._always | (_about.get() or {}) | getattr(record, "about", {})
        record.about = {name: value for name, value in fields.items() if value is not None}
        return True


class _Form(logging.Formatter):
    def _time(self, record: logging.LogRecord) -> str:
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def _fields(self, record: logging.LogRecord) -> dict[str, Any]:
        return getattr(record, "about", {})


class _Plain(_Form):
    """`2026-01-31T12:00:00.000Z INFO workers: the attempt begins [job=job_1 attempt=1]`, then a traceback if there is one."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={value}" for name, value in self._fields(record).items())
        return f"{self._time(record)} {record.levelname} {record.name}: {record.message}" + (f" [{fields}]" if fields else "")


class _Json(_Form):
    """One JSON object a line: time, level, logger, message, what it is about, and a traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        said = {"time": self._time(record), "level": record.levelname.lower(), "logger": record.name}
        said |= {"message": record.getMessage(), **self._fields(record)}
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return json.dumps(said, default=str)
