"""What the readers and the writers of the tables share: rows to records, the clock, and the numbering of events."""

import secrets
import time
from typing import Any

import sqlalchemy as sa

from sae_service.jobs import tables
from sae_service.jobs.records import Checkpoint, Job, JobState, JobSummary, Pace

DAY_S = 86_400
GPUS = sa.func.coalesce(tables.jobs.c.summary["gpus"].as_integer(), 1).label("gpus")
"""Of a job's training process."""


def now() -> int:
    """Unix seconds."""
    return int(time.time())


def new_id(prefix: str) -> str:
    """An id that sorts by the time of its making."""
    return f"{prefix}_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(5)}"


def summary(spec: dict[str, Any]) -> dict[str, Any]:
    """What a list shows of a spec."""
    stream = spec.get("stream") or {}
    dataset = spec.get("dataset") or stream.get("dataset") or {}
    return {
        "kind": spec.get("kind", "train"),
        "looks_at_latents": spec.get("kind") == "latents" or spec.get("latents") is not None,
        "model": (spec.get("model") or stream.get("model") or {}).get("name"),
        "dataset": dataset.get("path"),
        "tokens": spec.get("tokens", stream.get("tokens")),
        "gpus": spec.get("gpus", 1),
        "saes": [_sae(sae) for sae in spec.get("saes") or spec.get("folders", [])],
    }


def _sae(sae: dict[str, Any] | str) -> dict[str, Any]:
    """What is known of an SAE: of another job's its name, of one in a folder where it reads."""
    if isinstance(sae, str):
        return {"name": sae}
    size = sae.get("architecture")
    return {name: sae[name] for name in ("name", "hook_name")} | ({name: size[name] for name in ("kind", "d_sae")} if size else {})


SHOWN = [column for column in tables.jobs.c if column.name in JobState.model_fields]
"""The columns of what is shown of a job wherever it is shown."""
WHOLE = (tables.jobs.c.spec, tables.jobs.c.progress)
"""What is shown of one job beside; both may be long."""
LISTED = (
    tables.jobs.c.summary,
    *(
        tables.jobs.c.progress[name].as_float().label(name) if field.annotation is float
        # Not `as_integer`, which is too small for tokens.
        else sa.cast(tables.jobs.c.progress[name].as_string(), sa.BigInteger).label(name)
        for name, field in Pace.model_fields.items()
    ),
)
"""What is shown of each job of a list beside."""


def to_job(row: sa.Row[Any]) -> Job:
    """The record of one row of `jobs` with `latest_checkpoint` and `has_worker`."""
    job = Job(**_shown(row), spec=row.spec, progress=row.progress)
    return job.model_copy(update={"estimated_finish": _estimate(job.status, job.progress)})


def to_summary(row: sa.Row[Any]) -> JobSummary:
    """The record of one row of a list."""
    pace = None if row.step is None else Pace(**{name: getattr(row, name) for name in Pace.model_fields})
    return JobSummary(**_shown(row), summary=row.summary, progress=pace, estimated_finish=_estimate(row.status, pace))


def _shown(row: sa.Row[Any]) -> dict[str, Any]:
    columns = {column.name: getattr(row, column.name) for column in SHOWN}
    if row.status == "queued" and (row.status_reason is None or not row.has_worker):
        columns["status_reason"] = "waiting_for_capacity" if row.has_worker else "waiting_for_worker"
    return columns | {"latest_checkpoint": row.latest_checkpoint}


def _estimate(status: str, pace: Pace | None) -> int | None:
    if status != "running" or pace is None or not pace.tokens_per_s:
        return None
    return pace.updated_at + round((pace.total_tokens - pace.tokens) / pace.tokens_per_s)


def to_checkpoint(row: sa.Row[Any], is_latest: bool, is_best: bool) -> Checkpoint:
    """The record of one row of `checkpoints`."""
    names = [name for name, is_it in (("latest", is_latest), ("best", is_best)) if is_it]
    return Checkpoint.model_validate(dict(row._mapping) | {"names": names})


def best_step(connection: sa.Connection, job_id: str) -> int | None:
    """The step of a job's best checkpoint: the one with the lowest score, the latest of equals; None without scores."""
    table = tables.checkpoints
    query = sa.select(table.c.step).where(table.c.job_id == job_id, table.c.score.is_not(None))
    return connection.execute(query.order_by(table.c.score, table.c.step.desc()).limit(1)).scalar_one_or_none()


def add_event(
    connection: sa.Connection, job_id: str, kind: str, message: str, data: dict[str, Any], level: str = "info"
) -> int:
    """Appends an event and returns its number. The job's own row counts them, so that no two can have the same."""
    counted = sa.update(tables.jobs).where(tables.jobs.c.id == job_id).values(n_events=tables.jobs.c.n_events + 1)
    seq = connection.execute(counted.returning(tables.jobs.c.n_events)).scalar_one()
    row = {"job_id": job_id, "seq": seq, "created_at": now(), "type": kind, "level": level, "data": data}
    connection.execute(sa.insert(tables.events).values(**row, message=storable(message)))
    return seq


def storable(text: str) -> str:
    """The text as a table can hold it: PostgreSQL has no NUL."""
    return text.replace("\0", "")


def add_status_event(
    connection: sa.Connection, job_id: str, status: str, message: str, reason: str | None = None, level: str = "info"
) -> None:
    """Appends the event of a new status."""
    add_event(connection, job_id, "status", message, {"status": status, "status_reason": reason}, level)
