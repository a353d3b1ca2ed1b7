"""What the readers and the writers of the tables share: rows to records, the clock, and the numbering of events."""

import secrets
import time
from typing import Any

import sqlalchemy as sa

from sae_service.jobs import tables
from sae_service.jobs.records import Checkpoint, Job, Progress


def now() -> int:
    """Unix seconds."""
    return int(time.time())


def new_id(prefix: str) -> str:
    """An id that sorts by the time of its making."""
    return f"{prefix}_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(5)}"


def summary(spec: dict[str, Any]) -> dict[str, Any]:
    """What a list shows of a spec."""
    stream, saes = spec.get("stream", {}), spec.get("saes", [])
    return {
        "model": (stream.get("model") or {}).get("name"),
        "dataset": (stream.get("dataset") or {}).get("path"),
        "tokens": stream.get("tokens"),
        "saes": [{"name": sae["name"], "hook_name": sae["hook_name"]} | _size(sae["architecture"]) for sae in saes],
    }


def _size(architecture: dict[str, Any]) -> dict[str, Any]:
    return {"kind": architecture["kind"], "d_sae": architecture["d_sae"]}


def to_job(row: sa.Row[Any]) -> Job:
    """The record of one row of `jobs` with `latest_checkpoint` and `has_worker`."""
    columns = {name: value for name, value in row._mapping.items() if name in Job.model_fields}
    if row.status == "queued" and (row.status_reason is None or not row.has_worker):
        columns["status_reason"] = "waiting_for_capacity" if row.has_worker else "waiting_for_worker"
    return Job(**columns, estimated_finish=_estimate(row))


def _estimate(row: sa.Row[Any]) -> int | None:
    if row.status != "running" or row.progress is None:
        return None
    progress = Progress.model_validate(row.progress)
    if not progress.tokens_per_s:
        return None
    return progress.updated_at + round((progress.total_tokens - progress.tokens) / progress.tokens_per_s)


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
